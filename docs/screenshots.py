"""Pictures of the explorer for the documentation, from real runs: `make screenshots`.

    python docs/screenshots.py [--runs FOLDER]

Makes the runs of `rollsight demo` and CartPole with and without dropping, three seeds each, where the folder (a
temporary one otherwise) does not have them yet, and writes docs/explorer/*.png. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rollsight import runs
from rollsight.explorer import Server

OUT = Path(__file__).parent / "explorer"
SIZE = {"width": 1280, "height": 860}
LARGEST = 150_000  # bytes of a picture
TRAINING = ("CartPole-v1", "--rounds", "12", "--n-steps", "2048", "--eval-episodes", "5")


def prepare(folder: Path) -> None:
    """The runs that are not there yet."""
    if not (runs.is_run(folder / "demo-frozenlake") and runs.is_run(folder / "demo-language")):
        _call("demo", "--no-view", "--out", str(folder))
    for seed in range(3):
        for arm, options in (("dropping", ("--drop", "0.5")), ("ppo", ())):
            path = folder / f"cartpole-{arm}-{seed}"
            if not runs.is_run(path):
                _call("train", *TRAINING, "--seed", str(seed), "--out", str(path), *options)


def _call(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "rollsight", *arguments], check=True)


def addresses(folder: Path) -> dict[str, tuple[str, str]]:
    """Picture -> address, and what is there when the page is drawn."""
    cart, language = runs.open(folder / "demo-cart-all-records-0"), runs.open(folder / "demo-language")
    cartpole = [path.name for path in runs.find_runs(folder) if path.name.startswith("cartpole")]
    worst = int(np.nanargmin(cart.records(cart.rounds[3])["score_return"].to_numpy()))
    return {
        "runs": (f"/?runs={','.join(cartpole)}", "#runs-curves .main-svg"),
        "overview": ("/runs/demo-cart-all-records-0", "#overview-curves .main-svg"),
        "round": (f"/runs/demo-cart-all-records-0/round/{cart.rounds[3]}", "#round-strip .main-svg"),
        "record": (f"/runs/demo-cart-all-records-0/record/{cart.rounds[3]}/{worst}", "#record-picture img"),
        "prompts": (f"/runs/demo-language/prompts?round={language.rounds[4]}", "#prompts-body .rs-prompt-row"),
        "compare": (f"/compare?runs={','.join(cartpole)}&baseline=ppo", "#compare-body .main-svg"),
        "trust": ("/runs/demo-cart-all-records-0/trust", "main .main-svg"),
    }


def picture(page: Page) -> bytes:
    """The page as a PNG with as many colours as it may have."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for colours in (256, 128, 64, 32):
        out = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= LARGEST:
            break
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="where the runs are, or are made and stay")
    given = parser.parse_args().runs
    OUT.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given or Path(temporary)
        prepare(folder)
        with Server([folder], port=0) as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.set_default_timeout(120_000)
            for name, (address, drawn) in addresses(folder).items():
                page.goto(server.url.rstrip("/") + address)
                page.wait_for_selector(drawn)
                page.wait_for_timeout(2_000)
                content = picture(page)
                (OUT / f"{name}.png").write_bytes(content)
                print(f"{OUT / name}.png: {len(content) // 1000} KB")
            browser.close()


if __name__ == "__main__":
    main()
