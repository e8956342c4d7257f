"""Build the book: execute what changed, generate pages, run Jupyter Book with warnings as errors.

    python book/_tools/build.py [--offline] [--repository URL]

A notebook is executed again when its code cells changed, or when anything in ssmlib or
requirements.txt did. Executed notebooks go to Jupyter Book's own cache, `_build/.jupyter_cache`.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import nbformat
import yaml
from execute import report_failure, run
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient.exceptions import CellExecutionError
from pages import generate

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"  # where Jupyter Book looks for outputs
STATUS = BUILD / "status.json"
BUILT = BUILD / "built"  # the fingerprint of the last build that succeeded
MATHJAX = "3.2.2"
VENDOR = ROOT / "book/_static/vendor/mathjax"
PACKAGES = ["torch", "triton", "jupyter-book", "sphinx", "myst-nb", "matplotlib", "numpy", "nbval"]


def main() -> int:
    options = parse_options()
    BUILD.mkdir(exist_ok=True)
    fingerprint = library_fingerprint()
    forget_outdated(fingerprint)
    chapters = execute_stale()
    if chapters is None:
        return 1
    write_status(chapters)
    generate(ROOT)
    if options.offline:
        fetch_mathjax()
    config = write_config(options)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT)]
    command += ["--config", str(config), "-W", "--keep-going"]
    if not BUILT.exists() or BUILT.read_text() != fingerprint:
        command.append("--all")  # Sphinx does not see that the outputs of an unchanged page changed
    code = subprocess.run(command, cwd=ROOT).returncode
    page = BUILD / "html/index.html"
    if code or not page.exists():
        print("The book was not built: see the warnings above.", file=sys.stderr)
        return code or 1
    BUILT.write_text(fingerprint)
    print(f"\nThe book: {page}")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("--offline", action="store_true", help="put MathJax into the pages' folder")
    parser.add_argument("--repository", help="URL of the public repository, for launch buttons")
    parser.add_argument("--branch", default="main", help="branch that the launch buttons open")
    return parser.parse_args()


def library_fingerprint() -> str:
    """One hash of everything outside a notebook that its outputs depend on."""
    digest = hashlib.sha256()
    sources = [
        p for p in (ROOT / "ssmlib").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    ]
    for path in sorted([*sources, ROOT / "requirements.txt"]):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def forget_outdated(fingerprint: str) -> None:
    """Empty the cache of outputs if another library made them. It says itself which one did."""
    made_by = CACHE / "fingerprint"
    if made_by.exists() and made_by.read_text() == fingerprint:
        return
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir()
    made_by.write_text(fingerprint)


def execute_stale() -> list[dict] | None:
    """Execute the chapters that the cache lacks; what each one took, or None if a cell failed."""
    cache = get_cache(CACHE)
    chapters = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name = str(path.relative_to(ROOT))
        try:
            kept = cache.match_cache_notebook(nbformat.read(path, as_version=4))
        except KeyError:
            print(f"executing {name}", flush=True)
            try:
                done = run(path)
            except CellExecutionError as error:
                report_failure(path, error)
                return None
            took = {"execution_seconds": done.seconds, "peak_bytes": done.peak_bytes}
            bundle = CacheBundleIn(done.notebook, str(path), data=took)
            kept = cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        seconds, peak = kept.data["execution_seconds"], kept.data["peak_bytes"]
        chapters.append({"file": name, "seconds": seconds, "peak_bytes": peak})
    return chapters


def write_status(chapters: list[dict]) -> None:
    """Write what the status page shows; the date changes only when something else does."""
    versions = {"python": platform.python_version()} | {p: version(p) for p in PACKAGES if _has(p)}
    status = {"chapters": chapters, "versions": versions}
    old = json.loads(STATUS.read_text()) if STATUS.exists() else {}
    if {k: old.get(k) for k in status} == status:
        return
    status["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    draft = STATUS.with_suffix(".tmp")
    draft.write_text(json.dumps(status, indent=1))
    os.replace(draft, STATUS)


def _has(package: str) -> bool:
    try:
        return bool(version(package))
    except ModuleNotFoundError:
        return False


def write_config(options: argparse.Namespace) -> Path:
    """_config.yml plus what was asked for on the command line."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    if options.repository:
        url = options.repository.removesuffix("/").removesuffix(".git")
        config["repository"] = {"url": url, "branch": options.branch, "path_to_book": ""}
        config["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
        config["html"] |= {"use_repository_button": True, "use_issues_button": True}
    if options.offline:
        config["sphinx"]["config"]["mathjax_path"] = "vendor/mathjax/tex-mml-chtml.js"
    path = BUILD / "_config.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def fetch_mathjax() -> None:
    """Put the parts of MathJax that the pages use under book/_static/vendor (git ignores it)."""
    if (VENDOR / "tex-mml-chtml.js").exists():
        return
    if shutil.which("npm") is None:
        sys.exit("OFFLINE=1 fetches MathJax with npm: install Node.js, or leave OFFLINE out.")
    target = BUILD / "mathjax"
    target.mkdir(exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", f"mathjax@{MATHJAX}"], cwd=target, check=True)
    with tarfile.open(target / f"mathjax-{MATHJAX}.tgz") as archive:
        archive.extractall(target, filter="data")
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(target / "package/es5" / fonts, VENDOR / fonts, dirs_exist_ok=True)
    shutil.copy(target / "package/es5/tex-mml-chtml.js", VENDOR)


if __name__ == "__main__":
    sys.exit(main())
