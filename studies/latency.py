"""How soon a picture is on the screen after the last keystroke: `fewstep serve` on the bundled model, in Chromium.

    python studies/latency.py        # five minutes; let nothing else run

Figures: docs/serving/latency.json, docs/serving.md; 166.5 ms at 4 steps.
Measured in the browser, from the event of a prompt's last letter
to the animation frame in which its finished picture stands on the page; a letter is typed every 80 ms, so pictures of
earlier letters are still being painted when the last one comes.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from playwright.sync_api import Page, sync_playwright

from fewstep.data.worlds.scenes import Scenes
from fewstep.measure.stopwatch import machine

OUT = Path("docs/serving/latency.json")
LETTER = 80  # milliseconds


@dataclass(frozen=True, kw_only=True)
class Study:
    prompts: int = 20
    """Sends one request after another, at each number of steps."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps."""


def milliseconds(page: Page, prompt: str) -> int:
    """From its last letter to its picture."""
    page.fill("#prompt", "")
    page.type("#prompt", prompt[:-1], delay=LETTER)
    before = int(page.get_attribute("#pictures", "data-seq") or 0)
    page.type("#prompt", prompt[-1])
    page.wait_for_function(
        """([before, prompt]) => Number(document.getElementById('pictures').dataset.seq) > before
             && document.querySelector('#pictures img').alt.startsWith(prompt + ', seed')""",
        arg=[before, prompt],
    )
    return int(page.get_attribute("#pictures", "data-milliseconds") or 0)


def main(study: Study) -> None:
    command = [sys.executable, "-m", "fewstep", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().split(" at ")[1].strip()
    place = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))))
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#state:has-text('ready')")
        milliseconds(page, "a warm up")
        for steps in study.steps:
            page.locator("#steps").evaluate(
                "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }", str(steps)
            )
            taken = sorted(milliseconds(page, Scenes(seed=9).prompt(i)[0]) for i in range(study.prompts))
            rows.append({"steps": steps, "median_ms": statistics.median(taken), "most_ms": taken[-1]})
            print(rows[-1], flush=True)
        browser.close()
    server.send_signal(signal.SIGTERM)
    server.wait(30)
    held = {"machine": machine(torch.device("cpu")), "prompts": study.prompts, "rows": rows}
    OUT.write_text(json.dumps(held, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Study))
