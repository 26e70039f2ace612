"""`make mutants`: change one operator, number or name of the code at a time; do its tests notice?

The changes are cosmic-ray's. Its runner starts Python and torch for each of them, 3 s; here a process that has
imported everything but vidcache forks, and the fork finds a changed copy of one module in front of the package.
Nothing in the checkout is written to. Of the operators that could replace one operator, one is drawn (fixed seed):
`a - b` for `a + b` says as much as `a ** b`. Annotations are left alone: nothing runs them.

python -m tests.mutants [--only cache/reader.py,...] [--at-most N]
"""

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import h5py  # noqa: F401  (once, not in every fork)
import hypothesis
import joblib  # noqa: F401
import pytest
import sklearn.metrics  # noqa: F401
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators import operator as cosmic_operator  # noqa: F401
from cosmic_ray.plugins import get_operator, operator_names

CHECKOUT = Path(__file__).parents[1]
FOLDERS = {"common": "vidcache", **{name: f"vidcache/{name}" for name in ("cache", "eval", "preprocess", "train")}}
# Which tests there are for a module; the fast ones of them first, as the first failure ends the run.
TARGETS = {
    "common/spec.py": "sampling",
    "preprocess/video/decode.py": "sampling decode",
    "train/augment.py": "augment",
    "train/schedule.py": "schedule",
    "preprocess/split/assign.py": "split groups",
    "preprocess/split/groups.py": "groups leaks resplit",
    "preprocess/split/config.py": "split given resplit",
    "cache/format.py": "cache stream leaks rebuild resplit",
    "cache/builds.py": "cache rebuild",
    "cache/cli.py": "leaks cli",
    "cache/writer.py": "cache rebuild",
    "cache/lock.py": "cache rebuild",
    "cache/validate.py": "cache malicious_cache",
    "cache/reader.py": "cache stream joined",
    "cache/stream.py": "stream joined",
    "cache/dataset.py": "joined stream",
    "cache/leakage.py": "leaks",
    "preprocess/reuse.py": "rebuild verdicts",
    "train/feature_cache.py": "features",
}
# Not a change of what the code does, or without an operator's arguments.
LEFT_OUT = ("VariableReplacer", "VariableInserter")


class Mutant(NamedTuple):
    """One change: the n-th place where an operator of cosmic-ray finds something to change."""

    operator: str
    occurrence: int


def family(operator: str) -> str:
    """What is replaced, without by what."""
    parts = operator.split("/")[1].split("_")
    return "_".join(parts[:2])


def places(module: str) -> list[Mutant]:
    """Every place and kind of change once, in a random order; by what, is drawn."""
    source = (CHECKOUT / module).read_text()
    skipped = annotations(source)
    found: dict[tuple[str, int, int, int], list[Mutant]] = {}
    tree = get_ast(source)
    for name in operator_names():
        if name.split("/")[1] in LEFT_OUT:
            continue
        operator, occurrence = get_operator(name)(), 0
        for node in ast_nodes(tree):
            for index, ((line, column), _) in enumerate(operator.mutation_positions(node)):
                number, occurrence = occurrence, occurrence + 1
                if (line, column) in skipped:
                    continue
                which = number if family(name) == "NumberReplacer" else index
                key = (family(name), line, column, 0 if family(name) == "NumberReplacer" else which)
                found.setdefault(key, []).append(Mutant(name, number))
    rng = random.Random(f"2026 {module}")
    drawn = [rng.choice(some) for _, some in sorted(found.items())]
    rng.shuffle(drawn)
    return drawn


def annotations(source: str) -> set[tuple[int, int]]:
    """(line, column) of everything inside an annotation."""
    found: set[tuple[int, int]] = set()
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr):
                for line in range(part.lineno, (part.end_lineno or part.lineno) + 1):
                    first = part.col_offset if line == part.lineno else 0
                    last = part.end_col_offset if line == part.end_lineno else len(lines[line - 1])
                    found |= {(line, column) for column in range(first, (last or 0) + 1)}
    return found


def build_tree(root: Path) -> None:
    """The package as folders of links, as an editable install has it."""
    for folder, place in FOLDERS.items():
        for path in (CHECKOUT / folder).rglob("*"):
            link = root / place / path.relative_to(CHECKOUT / folder)
            if path.is_file() and "__pycache__" not in path.parts:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)


def place_of(root: Path, module: str) -> Path:
    """Where a file of the checkout is in the tree."""
    folder, name = module.split("/", 1)
    return root / FOLDERS[folder] / name


def run_tests(root: Path, module: str, code: str, timeout_seconds: float) -> tuple[str, float, str]:
    """Run a module's tests with other code in its place: "survived", "killed" or "timeout"; seconds; what was said."""
    place, scratch = place_of(root, module), Path(tempfile.mkdtemp(prefix="mutant-"))
    place.unlink()
    place.write_text(code)
    for compiled in (place.parent / "__pycache__").glob(f"{place.stem}.*"):
        compiled.unlink()  # its time has seconds only
    start, said = time.monotonic(), scratch / "said"
    child = os.fork()
    if not child:
        _be_the_child(root, scratch, said, module)
    outcome = "timeout"
    while time.monotonic() - start < timeout_seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            outcome = "killed" if status else "survived"
            break
        time.sleep(0.02)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds, text = time.monotonic() - start, said.read_text(errors="replace")[-1500:] if said.exists() else ""
    place.unlink()
    place.symlink_to(CHECKOUT / module)
    shutil.rmtree(scratch, ignore_errors=True)
    return outcome, seconds, text


def _be_the_child(root: Path, scratch: Path, said: Path, module: str) -> None:
    """Run pytest and exit; never returns."""
    os.setsid()
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["PYTHONPATH"] = f"{root}:{CHECKOUT}"
    os.environ["TMPDIR"] = str(scratch)
    tempfile.tempdir = None
    sys.path[:0] = [str(root), str(CHECKOUT)]
    tests = [f"tests/test_{name}.py" for name in TARGETS[module].split()]
    quiet = ["-x", "-q", "--no-header", "--tb=line", "--hypothesis-profile=mutants", f"--basetemp={scratch / 't'}"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that were imported before the fork
    quiet += [word for name in ("cacheprovider", "randomly", "xdist", "cov") for word in ("-p", f"no:{name}")]
    try:
        code = int(pytest.main([*quiet, *tests]))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def try_module(root: Path, module: str, at_most: int) -> str:
    """Try the mutants of a module; print those that nobody noticed, and return a line of figures."""
    source = (CHECKOUT / module).read_text()
    found = places(module)
    outcome, usual, said = run_tests(root, module, source, 600)
    if outcome != "survived":
        return f"{module}: its tests fail without any change\n{said}"
    survived = 0
    for mutant in found[:at_most]:
        code = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
        outcome, _, _ = run_tests(root, module, code, 3 * usual + 20)
        if outcome == "survived":
            survived += 1
            lines = list(difflib.unified_diff(source.splitlines(), code.splitlines(), module, lineterm="", n=0))
            print("\n".join([f"{mutant.operator} survived", *lines[2:]]), flush=True)
    tried = min(at_most, len(found))
    return f"{module}: {tried} of {len(found)} tried, {tried - survived} noticed"


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="modules, with commas; all of them when empty")
    parser.add_argument("--at-most", type=int, default=10**9, help="mutants of each module, drawn with a fixed seed")
    options = parser.parse_args()
    os.chdir(CHECKOUT)
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, database=None)
    with tempfile.TemporaryDirectory(prefix="mutants-") as root:
        build_tree(Path(root))
        modules = options.only.split(",") if options.only else TARGETS
        print("\n".join([try_module(Path(root), module, options.at_most) for module in modules]))


if __name__ == "__main__":
    main()
