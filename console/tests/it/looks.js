(() => {
  const faults = [];
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  // A colour as the browser paints it, on what lies below.
  const paint = (colour, below) => {
    canvas.clearRect(0, 0, 1, 1);
    if (below) {
      canvas.fillStyle = `rgb(${below.join(" ")})`;
      canvas.fillRect(0, 0, 1, 1);
    }
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  // Every ground that may lie below: a gradient has several.
  const grounds = (node) => {
    if (!node) return [paint(getComputedStyle(document.documentElement).colorScheme.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches ? "#121212" : "#fff")];
    const style = getComputedStyle(node);
    const below = () => grounds(node.parentElement);
    const stops = style.backgroundImage.match(/rgba?\([^)]*\)/g);
    if (stops) return stops.map((stop) => paint(stop));
    return below().map((one) => paint(style.backgroundColor, one));
  };
  const seen = (node) => node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && !node.closest(".quiet, .skip");

  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.textContent.trim() || node.matches("script, noscript") || !seen(node)) continue;
    const style = getComputedStyle(node);
    const big = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    for (const ground of grounds(node)) {
      const found = contrast(paint(style.color, ground), ground);
      if (found < (big ? 3 : 4.5)) faults.push(`contrast ${found.toFixed(2)}: ${text.textContent.trim().slice(0, 40)}`);
    }
  }
  for (const node of document.querySelectorAll("a, button, input:not([type=hidden])")) {
    if (!seen(node)) continue;
    const { width, height } = node.getBoundingClientRect();
    if (width < 24 || height < 24) faults.push(`target ${width.toFixed(0)}x${height.toFixed(0)}: ${node.outerHTML.slice(0, 80)}`);
    const named = node.textContent.trim() || node.getAttribute("aria-label") || document.querySelector(`label[for="${node.id}"]`);
    if (!named) faults.push(`no name: ${node.outerHTML.slice(0, 80)}`);
  }
  const choices = [...document.querySelectorAll(".choices")].filter(seen);
  for (const one of choices) {
    const boxes = [...one.querySelectorAll(".choice")].map((node) => node.getBoundingClientRect());
    const [yes, no] = boxes;
    if (boxes.some((box) => Math.abs(box.width - yes.width) > 1 || Math.abs(box.height - yes.height) > 1)) faults.push("choices differ in size");
    const gap = Math.max(no.left - yes.right, no.top - yes.bottom);
    if (gap < 16) faults.push(`choices only ${gap} px apart`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  if (new Set(ids).size !== ids.length) faults.push("an id is used twice");
  for (const node of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const name of `${node.getAttribute("aria-labelledby") || ""} ${node.getAttribute("aria-describedby") || ""}`.split(" ").filter(Boolean)) {
      if (!document.getElementById(name)) faults.push(`points to nothing: ${name}`);
    }
  }
  const sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (sideways > 0) faults.push(`${sideways} px to scroll sideways`);
  return faults;
})()
