"""Enqueues pushes: as many as each line of standard input says, and then says so on standard output."""

import os
import sys

import pipeline

CHUNK = 200


def pushes(count):
    for n in range(count):
        yield f"{n % 2000:064x}", f"psh_{n:026d}"


def chunks(count):
    chunk = []
    for one in pushes(count):
        chunk.append(one)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main():
    task = getattr(pipeline, sys.argv[1])
    with pipeline.app.producer_pool.acquire(block=True) as producer:
        print("ready", flush=True)
        for line in sys.stdin:
            if task is pipeline.push_one:
                for one in pushes(int(line)):
                    task.apply_async(args=one, producer=producer)
            else:
                for chunk in chunks(int(line)):
                    task.apply_async(args=[chunk], producer=producer)
            print("enqueued", flush=True)


if __name__ == "__main__":
    main()
