"""What decides when and how the guest is built: recipe, tools, packages, space, seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pycdlib
import pytest

from machine_operator.local.guest import tools
from machine_operator.local.guest.apt import Package, keep, parse_uris
from machine_operator.local.guest.errors import GuestError, MissingTools, NoSpace, PackagesError
from machine_operator.local.guest.image import Steps, ensure_image
from machine_operator.local.guest.recipe import Recipe
from machine_operator.local.guest.seed_iso import write_seed
from machine_operator.local.guest.store import Manifest

SHA = "0123456789abcdef" * 4
URIS = f"""\
'http://mirror.example/debian/pool/main/a/acl/libacl1_2.3.1-3_amd64.deb' libacl1_2.3.1-3_amd64.deb 31488 SHA256:{SHA}
'http://mirror.example/pool/attr/libattr1_2.5.1-4_amd64.deb' libattr1_1%3a2.5.1-4_amd64.deb 22164 SHA256:{SHA}
"""


def test_apts_addresses_are_read_with_version_and_digest() -> None:
    first, second = parse_uris(URIS)
    assert first == Package("libacl1_2.3.1-3_amd64.deb", 31488, SHA)
    assert (first.name, first.version) == ("libacl1", "2.3.1-3")
    assert (second.name, second.version) == ("libattr1", "1:2.5.1-4")
    assert parse_uris("") == []


@pytest.mark.parametrize(
    "line", ["Reading package lists...", URIS.splitlines()[0].replace("SHA256", "MD5Sum")]
)
def test_a_line_without_a_trustworthy_digest_is_refused(line: str) -> None:
    with pytest.raises(PackagesError, match="not a package address"):
        parse_uris(line)


def test_dropped_packages_are_named_by_patterns() -> None:
    names = ["perl", "perl-base", "libperl5.36", "superperl", "dpkg", "dpkg-dev"]
    packages = [Package(f"{name}_1_all.deb", 1, SHA) for name in names]
    kept = keep(packages, dropped=["perl*", "libperl*", "dpkg"])
    assert [package.name for package in kept] == ["superperl", "dpkg-dev"]


def test_the_recipe_ships_its_scripts() -> None:
    files = Recipe().files
    assert {"stage1.sh", "rootfs/usr/lib/machine/init.sh", "rootfs/etc/ssh/sshd_config"} <= set(
        files
    )
    assert files["stage1.sh"].startswith(b"#!/bin/busybox sh\n")


def test_what_the_guests_programs_need_is_there() -> None:
    recipe = Recipe()
    assert "bsdutils" in recipe.packages, "script, which makes the terminals"
    assert "httpd" in recipe.applets


def test_the_same_recipe_has_the_same_digest() -> None:
    assert Recipe().digest() == Recipe().digest()
    assert len(Recipe().digest()) == 16


def test_any_change_of_the_recipe_changes_its_digest() -> None:
    recipe = Recipe()
    edited = {**recipe.files, "stage1.sh": recipe.files["stage1.sh"] + b"\n"}
    variants = [
        replace(recipe, packages=(*recipe.packages, "vim")),
        replace(recipe, dropped=recipe.dropped[1:]),
        replace(recipe, boot_modules=recipe.boot_modules[::-1]),
        replace(recipe, spare_modules=()),
        replace(recipe, applets=()),
        replace(recipe, files=edited),
        replace(recipe, builder=recipe.builder + 1),
    ]
    assert len({recipe.digest(), *(variant.digest() for variant in variants)}) == len(variants) + 1


def test_missing_tools_are_told_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools, "_SBIN", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingTools) as caught:
        tools.require("mkfs.erofs", "lz4", "mke2fs")
    assert caught.value.tools == ["lz4", "mke2fs", "mkfs.erofs"]
    assert caught.value.command == "apt-get install -y e2fsprogs erofs-utils lz4"
    assert str(caught.value).endswith(caught.value.command)


def test_a_failing_program_is_told_with_its_last_words() -> None:
    with pytest.raises(GuestError, match="sh ended with code 3: it hurts"):
        tools.run(["sh", "-c", "echo it hurts >&2; exit 3"])
    with pytest.raises(GuestError, match="no-such-program could not be started"):
        tools.run(["no-such-program"])
    assert tools.run(["cat"], stdin=b"through") == b"through"


class Builder:
    """A build that only writes a file, and counts."""

    def __init__(self) -> None:
        self.built = 0
        self.lines: list[str] = []

    def ensure(
        self, cache: Path, *, version: str = "v1", space: int = 1, fails: bool = False
    ) -> Path:
        def build(directory: Path, steps: Steps) -> Manifest:
            self.built += 1
            (directory / "files/root").write_text(version)
            if fails:
                raise GuestError("the build failed")
            return Manifest(name="guest", version=version, root="root")

        image = ensure_image(
            cache,
            name="guest",
            version=version,
            tools=(),
            space=space,
            build=build,
            progress=self.lines.append,
        )
        return image.root


def test_an_image_is_built_once_per_version(tmp_path: Path) -> None:
    builder = Builder()
    assert builder.ensure(tmp_path).read_text() == "v1"
    assert builder.ensure(tmp_path).read_text() == "v1"
    assert builder.built == 1
    assert builder.ensure(tmp_path, version="v2").read_text() == "v2"
    assert builder.built == 2


def test_a_failed_build_leaves_the_previous_image_and_nothing_else(tmp_path: Path) -> None:
    builder = Builder()
    root = builder.ensure(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GuestError, match="the build failed"):
        builder.ensure(tmp_path, version="v2", fails=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert root.read_text() == "v1"


def test_a_broken_image_is_built_again(tmp_path: Path) -> None:
    builder = Builder()
    builder.ensure(tmp_path).unlink()
    assert builder.ensure(tmp_path).read_text() == "v1"
    assert any("building again" in line for line in builder.lines)


def test_too_little_space_is_told_before_building(tmp_path: Path) -> None:
    builder = Builder()
    with pytest.raises(NoSpace, match=r"needs \d+ MiB, but .* MACHINE_OPERATOR_CACHE"):
        builder.ensure(tmp_path, space=2**60)
    assert builder.built == 0


def test_every_step_is_reported_with_its_time() -> None:
    lines: list[str] = []
    ticks = iter([10.0, 12.5])
    with Steps("guest", progress=lines.append, clock=lambda: next(ticks)).step("unpacked"):
        pass
    assert lines == ["guest: unpacked: 2.5 s"]


@contextmanager
def opened(path: Path) -> Iterator[pycdlib.PyCdlib]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    yield iso
    iso.close()


@pytest.mark.parametrize("network", [None, b"version: 2\n"])
def test_a_seed_has_its_files_under_their_real_names(tmp_path: Path, network: bytes | None) -> None:
    path = tmp_path / "seed.iso"
    path.write_text("an older seed")
    write_seed(path, user_data=b"#cloud-config\n{}\n", meta_data=b"", network_config=network)
    expected = {"user-data": b"#cloud-config\n{}\n", "meta-data": b""}
    expected |= {} if network is None else {"network-config": network}
    with opened(path) as iso:
        assert iso.pvd.volume_identifier.strip() == b"cidata"
        names = {
            item.rock_ridge.name() for item in iso.list_children(rr_path="/") if item.is_file()
        }
        assert names == {name.encode() for name in expected}
        for name, content in expected.items():
            data = BytesIO()
            iso.get_file_from_iso_fp(data, rr_path=f"/{name}")
            assert data.getvalue() == content
            iso.get_file_from_iso_fp(data := BytesIO(), joliet_path=f"/{name}")
            assert data.getvalue() == content
    assert path.stat().st_mode & 0o077 == 0
    assert [item.name for item in tmp_path.iterdir()] == ["seed.iso"]
