"""Whether this machine can do the work: versions, devices, memory, JupyterLab, shipped models, one edit."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from workbench.errors import WorkbenchError

DISTRIBUTION = "interp-workbench"
BACKENDS = ("transformer-lens", "nnsight", "peft")
LEAST_MEMORY_GB = 2.0
EXTENSION = "workbench.lab.server"
WIDGETS = "workbench_widgets"
LARGEST_MODULE_KB = 100


@dataclass(frozen=True)
class Check:
    """One line of the doctor's findings."""

    name: str
    ok: bool
    found: str
    do: str = ""

    def __str__(self) -> str:
        line = f"{'ok    ' if self.ok else 'FAILED'}  {self.name}: {self.found}"
        return line if self.ok or not self.do else f"{line}; {self.do}"


def checks() -> Iterator[Check]:
    """Every check, each as soon as it is made."""
    yield python()
    yield from packages()
    yield from devices()
    yield memory()
    yield server_extension()
    yield widget_modules()
    yield from models()


def python() -> Check:
    """The interpreter's version against the floor."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", sys.version_info >= (3, 11), found, "install Python 3.11 or newer")


def packages() -> Iterator[Check]:
    """Every requirement of the distribution, and the optional backends where they are installed."""
    try:
        required = [Requirement(r) for r in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield Check("packages", False, f"{DISTRIBUTION} is not installed", "pip install -e .")
        return
    needed = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [fault for r in needed if (fault := _fault(r))]
    shown = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "jupyterlab"))
    yield Check("packages", not wrong, "; ".join(wrong) or shown, "pip install -U what is named")
    for requirement in required:
        if requirement.name in BACKENDS:
            yield _optional(requirement)


def _fault(requirement: Requirement) -> str:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} is not {requirement.specifier}"


def _optional(requirement: Requirement) -> Check:
    fault = _fault(requirement)
    if fault.endswith("missing"):
        return Check(requirement.name, True, "not installed (optional)")
    do = f"pip install '{requirement.name}{requirement.specifier}'"
    return Check(requirement.name, not fault, fault or metadata.version(requirement.name), do)


def devices() -> Iterator[Check]:
    """The CPU, and each accelerator with one product computed on it."""
    import torch

    threads = torch.get_num_threads()
    yield Check("cpu", True, f"{psutil.cpu_count()} cores, {threads} torch threads")
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        yield _device(name)
    if not names:
        yield Check("accelerator", True, "none; small models run well on the CPU")


def _device(name: str) -> Check:
    import torch

    try:
        total = torch.ones(64, 64, device=name) @ torch.ones(64, 64, device=name)
        assert float(total.sum()) == 64**3
    except Exception as error:  # drivers fail in as many ways as there are drivers
        return Check(
            name, False, f"{type(error).__name__}: {error}", "check its driver, or use cpu"
        )
    if name == "mps":
        return Check(name, True, "works")
    free, whole = (n / 2**30 for n in torch.cuda.mem_get_info(name))
    return Check(
        name, True, f"{torch.cuda.get_device_name(name)}, {free:.1f} of {whole:.1f} GiB free"
    )


def memory() -> Check:
    """Free memory, and the size of model that fits in it."""
    free = psutil.virtual_memory().available / 2**30
    # float32 weights may take half of it; the rest is for activations and the cache.
    found = f"{free:.1f} GiB free: float32 models up to about {free / 8 * 1.07:.1f} B parameters"
    return Check("memory", free >= LEAST_MEMORY_GB, found, "close something")


def server_extension() -> Check:
    """The extension of the Jupyter server: it loads, whether it is on, and who starts it."""
    from jupyter_server.extension.config import ExtensionConfigManager

    try:
        from workbench.lab.server import SWITCH, WorkbenchServer
    except ImportError as error:
        return Check("server extension", False, str(error), "pip install -e . again")
    on = "on" if WorkbenchServer().nodelay else f"off ({SWITCH})"
    everywhere = ExtensionConfigManager().enabled(EXTENSION)
    started = "every Jupyter server of this environment" if everywhere else "`workbench lab` alone"
    return Check("server extension", True, f"NODELAY {on}; loaded by {started}")


def widget_modules() -> Check:
    """Every widget's built module is there, and small enough that each instance may load it anew."""
    # Found without importing it: the package does not depend on its widgets.
    spec = util.find_spec(WIDGETS)
    if spec is None or not spec.submodule_search_locations:
        return Check("widgets", False, f"{WIDGETS} is not installed", "pip install -e . again")
    return _modules_in(Path(spec.submodule_search_locations[0]))


def _modules_in(folder: Path) -> Check:
    modules = [file.with_name("widget.js") for file in sorted(folder.glob("*/widget.py"))]
    sizes = {m.parent.name: m.stat().st_size / 1000 if m.is_file() else None for m in modules}
    wrong = [f"{name} is not built" for name, kb in sizes.items() if kb is None]
    wrong += [f"{n} is {kb:.0f} kB" for n, kb in sizes.items() if kb and kb > LARGEST_MODULE_KB]
    largest = max((kb for kb in sizes.values() if kb), default=0.0)
    found = f"{len(sizes)} modules, the largest {largest:.0f} kB"
    return Check("widgets", bool(sizes) and not wrong, "; ".join(wrong) or found, "make widgets")


def models() -> Iterator[Check]:
    """Each shipped model, loaded, run, edited and found unchanged."""
    import workbench as wb

    names = wb.shipped()
    if not names:
        do = f"restore {wb.data_path() / 'models'} from the repository"
        yield Check("models", False, "no model is shipped here", do)
    for name in names:
        yield from _model(name)


def _model(name: str) -> Iterator[Check]:
    import workbench as wb

    try:
        start = time.perf_counter()
        model = wb.load(name)
        took = time.perf_counter() - start
        model.run("add 347 58?\n")  # the first run pays for threads and caches
        start = time.perf_counter()
        tokens = len(model.generate("add 347 58?\n", max_new_tokens=32)[0].ids)
        speed = tokens / (time.perf_counter() - start)
        count = sum(p.numel() for p in model.hf.parameters()) / 1e6
        found = f"{count:.2f} M parameters on {model.device}, loaded in {took:.1f} s"
        yield Check(name, True, f"{found}, {speed:.0f} tokens/s")
        yield edit_round_trip(name, model)
    except (WorkbenchError, OSError, RuntimeError) as error:
        yield Check(name, False, str(error), "restore its folder from the repository")


def edit_round_trip(name: str, model: Any) -> Check:
    """Strength 0 changes no bit, strength 1 changes the logits, and afterwards nothing is left."""
    import torch

    import workbench as wb

    site = f"L{model.n_layers // 2}.resid_post"
    shift = torch.ones(model.d_model)
    edit = wb.Intervention("custom", "affine", {site: {"shift": shift}}, unit="ones")
    text = "add 347 58?\n"
    base = model.run(text).logits
    off = model.run(text, edits=[edit.at(0.0)]).logits
    on = model.run(text, edits=[edit]).logits
    after = model.run(text).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    faults = {
        "strength 0 changed the logits": not torch.equal(base, off),
        "strength 1 changed nothing": torch.equal(base, on),
        "the model is not as it was": not torch.equal(base, after),
        f"{hooks} hooks are left": hooks > 0,
    }
    wrong = ", ".join(fault for fault, present in faults.items() if present)
    found = wrong or f"at {site}: off is off, on is on, nothing is left"
    return Check(f"{name} edit", not wrong, found, "report this with the versions above")
