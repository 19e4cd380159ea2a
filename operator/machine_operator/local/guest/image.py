"""Build the small guest, or find that it is built already.

The image's version is the digest of its recipe, so a changed package list or init script builds
again and nothing else does. One process builds, others wait for it and find the result. Everything
is made in a workspace of the store and moved in at the end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from machine_operator.local.guest.apt import Apt
from machine_operator.local.guest.errors import BrokenImage, GuestError, NoSpace
from machine_operator.local.guest.kernel import extract_vmlinux, find_modules
from machine_operator.local.guest.recipe import Recipe
from machine_operator.local.guest.rootfs import finish_tree, stage1_archive, unpack
from machine_operator.local.guest.store import Image, ImageStore, Manifest
from machine_operator.local.guest.tools import require, run

__all__ = ["CONSOLE_MARKER", "GUEST_IMAGE", "Progress", "Steps", "ensure_guest", "ensure_image"]

GUEST_IMAGE = "machine-guest:12"

# The guest prints this on its console, followed by the ports, once SSH is worth trying.
CONSOLE_MARKER = "machine-guest: sshd is listening on port"

Progress = Callable[[str], None]

_TOOLS = ("apt-get", "dpkg-deb", "ldconfig", "lz4", "mkfs.erofs", "tar")
_SPACE = 600 * 2**20
_APPEND = (
    # Under emulation on a busy host the kernel may measure the TSC twenty times too slow, and the guest's
    # clock then runs that much too fast; the emulated HPET keeps the host's time.
    "console=ttyS0 quiet panic=-1 mitigations=off clocksource=hpet no_timer_check "
    "random.trust_cpu=on cryptomgr.notests nokaslr"
)


class Steps:
    """Tells what is being done, and afterwards how long it took."""

    def __init__(
        self, image: str, *, progress: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._image = image
        self._progress = progress
        self._clock = clock

    def say(self, text: str) -> None:
        """Report a line about this image."""
        self._progress(f"{self._image}: {text}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Report the text and, if it went well, the seconds that it took."""
        start = self._clock()
        yield
        self.say(f"{text}: {self._clock() - start:.1f} s")


def ensure_guest(cache: Path, *, progress: Progress) -> Image:
    """Return the small guest's image, built first if there is none or its recipe has changed.

    Takes milliseconds if it is there; else some ten seconds plus the download of 60 MB of packages.

    Args:
        cache: the cache directory; images go to `images` in it and packages to `guest`.
        progress: gets a line for every step.

    Raises:
        MissingTools: with the command that installs what the build needs.
        NoSpace: before anything is built.
        GuestError: if a step fails.
    """
    recipe = Recipe()

    def build(directory: Path, steps: Steps) -> Manifest:
        return _build(directory, recipe=recipe, cache=cache, steps=steps)

    return ensure_image(
        cache,
        name=GUEST_IMAGE,
        version=recipe.digest(),
        tools=_TOOLS,
        space=_SPACE,
        build=build,
        progress=progress,
    )


def ensure_image(
    cache: Path,
    *,
    name: str,
    version: str,
    tools: tuple[str, ...],
    space: int,
    build: Callable[[Path, Steps], Manifest],
    progress: Progress,
) -> Image:
    """Return an image of that version from the cache's store, built by `build` if need be.

    Args:
        cache: the cache directory.
        name: the image's name.
        version: what the store's image must have.
        tools: the programs that the build needs.
        space: how many bytes the build needs at its peak.
        build: gets an empty directory, leaves the image's files in its `files`, returns their manifest.
        progress: gets a line for every step.
    """
    store = ImageStore(cache / "images")
    steps = Steps(name, progress=progress)
    if (image := _current(store, name=name, version=version, steps=steps)) is not None:
        return image
    require(*tools)
    cache.mkdir(parents=True, exist_ok=True)

    def on_wait() -> None:
        steps.say("another process is building it, waiting")

    with store.lock(name, on_wait=on_wait):
        if (image := _current(store, name=name, version=version, steps=steps)) is not None:
            return image
        _check_space(cache, needed=space, name=name)
        with steps.step("built in all"), store.workspace(name) as directory:
            files = directory / "files"
            files.mkdir()
            manifest = build(directory, steps)
            with steps.step("moved into the store"):
                return store.add(manifest, files=files)


def _current(store: ImageStore, *, name: str, version: str, steps: Steps) -> Image | None:
    try:
        image = store.find(name)
    except BrokenImage as error:
        steps.say(f"building again: {error}")
        return None
    return image if image is not None and image.version == version else None


def _check_space(cache: Path, *, needed: int, name: str) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise NoSpace(
            f"building the image {name} needs {needed >> 20} MiB, but {cache} has only {free >> 20} MiB left; "
            "make room, or set MACHINE_OPERATOR_CACHE to a directory on a larger disk"
        )


def _build(directory: Path, *, recipe: Recipe, cache: Path, steps: Steps) -> Manifest:
    files, tree, kernel = directory / "files", directory / "tree", directory / "kernel"
    with steps.step("packages resolved and downloaded"):
        apt = Apt(cache / "guest", progress=steps.say)
        packages = apt.fetch(recipe.packages, dropped=recipe.dropped)
    with steps.step(f"{len(packages)} packages unpacked"):
        unpack((path for path in packages if not _is_kernel(path)), into=tree)
        for package in filter(_is_kernel, packages):
            run(["dpkg-deb", "-x", package, kernel])
    with steps.step("kernel and modules extracted"):
        (files / "vmlinux").write_bytes(extract_vmlinux(_vmlinuz(kernel).read_bytes()))
        spare = find_modules(kernel, names=recipe.spare_modules)
        boot = find_modules(kernel, names=recipe.boot_modules)
    with steps.step("root file system made"):
        finish_tree(tree, recipe=recipe, modules=spare)
        busybox = (tree / "usr/bin/busybox").read_bytes()
        archive = stage1_archive(script=recipe.files["stage1.sh"], busybox=busybox, modules=boot)
        (files / "stage1.cpio").write_bytes(archive)
        run(["mkfs.erofs", "--all-root", "-T0", files / "root.erofs", tree])
    return Manifest(
        name=GUEST_IMAGE,
        version=recipe.digest(),
        root="root.erofs",
        root_readonly=True,
        kernel="vmlinux",
        initrd="stage1.cpio",
        append=_APPEND,
    )


def _is_kernel(package: Path) -> bool:
    return package.name.startswith("linux-image-")


def _vmlinuz(kernel: Path) -> Path:
    found = sorted((kernel / "boot").glob("vmlinuz-*"))
    if len(found) != 1:
        raise GuestError(f"expected one kernel among the packages, found {len(found)}")
    return found[0]
