"""Pages laid out by a real browser, where there is one: how wide they are, and what stands out of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

_MEASURE = """<!doctype html><meta charset="utf-8"><body><pre id="told"></pre><script>
const pages = PAGES, told = [];
function measure(frame, name, width) {
  const page = frame.contentDocument, root = page.documentElement, out = [];
  function walk(parent) {
    for (const e of parent.children) {
      const box = e.getBoundingClientRect();
      if (box.width > 0 && (box.right > width + 0.5 || box.left < -0.5))
        out.push(e.tagName + "." + e.className + " " + e.textContent.trim().slice(0, 40));
      const scrolls = ["auto", "scroll", "hidden"].includes(frame.contentWindow.getComputedStyle(e).overflowX);
      if (!scrolls && e.tagName.toLowerCase() !== "svg") walk(e);
    }
  }
  walk(page.body);
  told.push({name, width, scroll: root.scrollWidth, out, height: root.scrollHeight});
}
let left = pages.length;
for (const [name, width] of pages) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    measure(frame, name, width);
    if (--left === 0) document.getElementById("told").textContent = JSON.stringify(told);
  };
  frame.src = name;
  document.body.append(frame);
}
</script></body>"""


def laid_out(folder: Path, pages: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """For each (file in the folder, width in px): the width and height of its content, and what stands out sideways."""
    assert CHROMIUM is not None
    wrapper = folder / "measure.html"
    wrapper.write_text(_MEASURE.replace("PAGES", json.dumps(pages)), encoding="utf-8")
    answer = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", wrapper.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="told">(.+?)</pre>', answer.stdout, re.DOTALL)
    assert found, answer.stderr[-2000:]
    told: list[dict[str, Any]] = json.loads(unescape(found[1]))
    assert len(told) == len(pages)
    return told
