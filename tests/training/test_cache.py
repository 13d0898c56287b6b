"""Inductor's cache, which all processes of a user share: what a killed process left there half written does no harm."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_vae.compilation import compiled
from pyro_vae.inductor import NotCompiledError


def run_of(x):
    return compiled(nn.Module(), lambda *arguments: [arguments[-1].exp() + 1], [], [x], {})


def test_a_second_try_is_made_in_a_new_folder(monkeypatch, tmp_path):
    folders = []

    def broken(graph, *_, **__):
        folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        if len(folders) == 1:
            raise OSError("half.so: file too short")
        return graph

    monkeypatch.setattr(torch._inductor, "compile", broken)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.rand(3)
    torch.testing.assert_close(run_of(x)(x)[0], x.exp() + 1)
    assert folders[0] == str(tmp_path) != folders[1]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_a_failure_in_both_is_told_once(monkeypatch):
    def broken(*_, **__):
        raise OSError("half.so: file too short\nand so on")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    with pytest.raises(NotCompiledError, match=r"^compiling failed: OSError: half.so: file too short$"):
        run_of(torch.rand(3))
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")), reason="no compiler"
)
def test_an_empty_library_in_the_cache(monkeypatch, tmp_path):
    from torch._inductor.utils import clear_inductor_caches

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    clear_inductor_caches()
    x = torch.rand(1000)
    try:
        expected = run_of(x)(x)[0]
        libraries = list(Path(tmp_path).rglob("*.so"))
        assert libraries
        for library in libraries:
            library.unlink()  # an open one must not be cut
            library.write_bytes(b"")
        clear_inductor_caches()
        torch.testing.assert_close(run_of(x)(x)[0], expected)
        assert all(library.stat().st_size == 0 for library in libraries)
    finally:
        clear_inductor_caches()
