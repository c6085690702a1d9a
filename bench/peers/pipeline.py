"""What a team glues together: Celery tasks from RabbitMQ that push through APNs over HTTP/2, with httpx or aioapns.

It stores nothing and records nothing. The provider token is made once in forty minutes, connections are kept, messages are
persistent, and a task is acknowledged when it is done.
"""

import asyncio
import os
import ssl
import threading
import time
import uuid
from functools import cache
from urllib.parse import urlsplit

import httpx
import jwt
from celery import Celery

URL = os.environ["PEERS_APNS_URL"]
TOPIC = os.environ["PEERS_TOPIC"]
KEY_ID = os.environ["PEERS_KEY_ID"]
TEAM_ID = os.environ["PEERS_TEAM_ID"]
FOLDER = os.environ["PEERS_FOLDER"]
# Apple refuses a token that is older than an hour, and one that changes more often than every twenty minutes.
TOKEN_AGE = 2400
LIFE = 600
AGAIN = frozenset({429, 500, 503})

app = Celery("peers", broker=os.environ["PEERS_BROKER"])
app.conf.update(
    task_default_queue=os.environ["PEERS_QUEUE"],
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=int(os.environ.get("PEERS_PREFETCH", "4")),
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=False,
)


class Again(Exception):
    """The provider cannot at the moment."""


def read(name):
    with open(os.path.join(FOLDER, name), encoding="ascii") as file:
        return file.read()


@cache
def tls():
    return ssl.create_default_context(cafile=os.path.join(FOLDER, "ca.pem"))


_token = ("", 0.0)


def authorization():
    global _token
    text, made = _token
    if time.time() - made > TOKEN_AGE:
        made = time.time()
        claims = {"iss": TEAM_ID, "iat": int(made)}
        text = "bearer " + jwt.encode(claims, read("key.p8"), algorithm="ES256", headers={"kid": KEY_ID})
        _token = (text, made)
    return text


def payload(push):
    return {
        "aps": {
            "alert": {"title": "Confirmation requested", "body": "Open the app to answer."},
            "category": "COUNTERSIGN_PUSH",
            "interruption-level": "time-sensitive",
            "mutable-content": 1,
            "sound": "default",
        },
        "push": push,
    }


def request(token, push):
    headers = {
        "authorization": authorization(),
        "apns-topic": TOPIC,
        "apns-push-type": "alert",
        "apns-priority": "10",
        "apns-expiration": str(int(time.time()) + LIFE),
        "apns-id": str(uuid.uuid4()),
        "apns-collapse-id": push,
    }
    return {"url": f"{URL}/3/device/{token}", "headers": headers, "json": payload(push)}


def check(status):
    if status in AGAIN:
        raise Again(status)
    return status


_own = threading.local()


def client():
    """One for each thread or greenlet: an HTTP/2 connection of httpx is not safe between them."""
    if not hasattr(_own, "client"):
        _own.client = httpx.Client(http2=True, verify=tls(), timeout=10)
    return _own.client


@app.task(autoretry_for=(Again, httpx.TransportError), retry_backoff=True, max_retries=5)
def push_one(token, push):
    check(client().post(**request(token, push)).status_code)


@cache
def loop():
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


@cache
def async_client():
    return httpx.AsyncClient(http2=True, verify=tls(), timeout=10)


@cache
def apns():
    from aioapns import APNs
    from aioapns.connection import APNsProductionClientProtocol as Protocol

    # The library knows Apple's own hosts only, and asks for no protocol.
    place = urlsplit(URL)
    Protocol.APNS_SERVER, Protocol.APNS_PORT = place.hostname, place.port
    context = tls()
    context.set_alpn_protocols(["h2"])
    return APNs(
        key=read("key.p8"), key_id=KEY_ID, team_id=TEAM_ID, topic=TOPIC, max_connections=1, ssl_context=context
    )


async def by_httpx(token, push):
    answer = await async_client().post(**request(token, push))
    return answer.status_code


async def by_aioapns(token, push):
    from aioapns import NotificationRequest, PushType

    asked = NotificationRequest(
        device_token=token,
        message=payload(push),
        time_to_live=LIFE,
        priority=10,
        collapse_key=push,
        push_type=PushType.ALERT,
    )
    answer = await apns().send_notification(asked)
    return int(answer.status)


async def send_all(send, pushes):
    return await asyncio.gather(*(send(token, push) for token, push in pushes))


def many(task, send, pushes):
    statuses = loop().run_until_complete(send_all(send, pushes))
    left = [one for one, status in zip(pushes, statuses) if status in AGAIN]
    if left:
        raise task.retry(args=[left], countdown=1, max_retries=5)


@app.task(bind=True)
def push_httpx(self, pushes):
    many(self, by_httpx, pushes)


@app.task(bind=True)
def push_aioapns(self, pushes):
    many(self, by_aioapns, pushes)
