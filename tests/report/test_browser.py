"""The page in a real browser: all renders, nothing overlaps, nothing is asked of the network."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed (on Debian: apt install chromium)"
    ),
]

# Run in a copy of the page whose policy allows it, in a frame: no window is as narrow as a phone.
PROBE = """
<script>
addEventListener("load", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const width = document.documentElement.clientWidth;
  const leaves = [...document.querySelectorAll("h1,h2,h3,p,li,dt,dd,img,figcaption,table,summary")]
    .filter(e => !e.querySelector("p,li,img,table,dd")).map(e => [e, e.getBoundingClientRect()]);
  const name = e => e.tagName + ": " + (e.alt || e.textContent).slice(0, 60);
  const overlaps = [];
  for (let i = 0; i < leaves.length; i++)
    for (let j = i + 1; j < leaves.length; j++) {
      const [a, p] = leaves[i], [b, q] = leaves[j];
      if (a.contains(b) || b.contains(a)) continue;
      const right = e => e.closest(".scroll") ? e.closest(".scroll").getBoundingClientRect().right : 1e9;
      const x = Math.min(p.right, q.right, right(a), right(b)) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 1 && y > 1) overlaps.push([name(a), name(b)]);
    }
  const images = [...document.images];
  parent.postMessage(JSON.stringify({
    width, page: document.documentElement.scrollWidth, overlaps,
    outside: leaves.filter(([e, r]) => !e.closest(".scroll") && r.right > width + 1).map(([e]) => name(e)),
    images: images.length,
    rendered: images.filter(i => i.complete && i.naturalWidth > 0 && i.offsetWidth > 100).length,
    small: images.filter(i => i.getBoundingClientRect().width < 0.75 * Math.min(width - 32, 390)).length,
    font: Math.min(...leaves.map(([e]) => parseFloat(getComputedStyle(e).fontSize))),
  }), "*");
});
</script>
"""


FRAME = """<!DOCTYPE html>
<body><iframe src="probed.html" style="width: {width}px; height: 2000px; border: 0"></iframe>
<script>addEventListener("message", event => document.body.dataset.found = event.data)</script></body>
"""


def browse(page, folder, *options):
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,2000",
        *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def asked(page, folder):
    """URLs that the page has asked the network for; what the browser itself asks for has no origin."""
    log = folder / f"{page.stem}-net.json"
    browse(page, folder, f"--log-net-log={log}", f"--screenshot={folder / 'page.png'}")
    found = json.loads(log.read_text())
    begins = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [
        event["params"]
        for event in found["events"]
        if event["type"] == begins and "url" in event.get("params", {})
    ]
    return [r["url"] for r in requests if r["initiator"] != "not an origin"]


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_renders_and_nothing_overlaps(written, tmp_path, width):
    text = written.read_text()
    own = "default-src &#x27;none&#x27;;"
    assert text.count(own) == 1
    relaxed = text.replace(own, "default-src &#x27;unsafe-inline&#x27;;")
    (tmp_path / "probed.html").write_text(relaxed.replace("</body>", PROBE + "</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width))
    shown = browse(frame, tmp_path, "--dump-dom")
    data = re.search(r'data-found="([^"]*)"', shown)
    assert data is not None, shown[-2000:]
    found = json.loads(html.unescape(data[1]))
    assert found["width"] == width
    assert found["page"] <= width
    assert found["outside"] == []
    assert found["overlaps"] == []
    assert found["images"] == found["rendered"] == text.count("<img ") > 20
    assert found["small"] == 0
    assert found["font"] >= 13


def test_nothing_is_asked_of_the_network(written, tmp_path):
    assert asked(written, tmp_path) == []
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_the_page_forbids_what_it_does_not_need(written, tmp_path):
    """By its policy, not by good manners: were there a picture or a script, they would do nothing."""
    text = written.read_text()
    more = '<img src="http://127.0.0.1:9/x.png" alt="x"><script>document.title = "ran"</script></body>'
    spoiled, control = tmp_path / "spoiled.html", tmp_path / "control.html"
    spoiled.write_text(text.replace("</body>", more))
    control.write_text(text.replace("Content-Security-Policy", "x").replace("</body>", more))
    assert asked(spoiled, tmp_path) == []
    assert asked(control, tmp_path) == ["http://127.0.0.1:9/x.png"]
    assert "<title>ran" not in browse(spoiled, tmp_path, "--dump-dom")
    assert "<title>ran" in browse(control, tmp_path, "--dump-dom")
