"""The training step with its options: fused blocks, checkpointing, bfloat16, compiling, prefetch, memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pflsynth.errors import UsageError
from pflsynth.federation import machine
from pflsynth.federation.batches import Batch, prefetched
from pflsynth.networks import compiling
from pflsynth.networks.compiling import can_compile, compile_networks
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.networks.instance_norm import instance_affine
from pflsynth.networks.personalization import PersonalizationBlock, make_code
from pflsynth.networks.precision import convolve_in_bfloat16

from ..tiny import Tiny, changed, results, train

FORMATS = [torch.contiguous_format, torch.channels_last]
CODES = torch.stack([make_code(0, 0, target, sites=4, contrasts=4) for target in (1, 2, 1)])
IMAGES = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
Computed = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def generator_of(dropout: float = 0.5) -> PersonalizedGenerator:
    torch.manual_seed(1)
    generator = PersonalizedGenerator(12, width=8, residual_layers=1, dropout=dropout, mapper_layers=2)
    return generator.to(memory_format=torch.channels_last).train()


def computed(generator: PersonalizedGenerator, images: torch.Tensor = IMAGES) -> Computed:
    """Outputs, gradients and buffers after one step forward and back."""
    torch.manual_seed(3)
    output = generator(images, CODES[: len(images)])
    output.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in generator.named_parameters()}
    return output.detach(), gradients, dict(generator.named_buffers())


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------------------------------------------ one fused pass


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("samples", [1, 3])
def test_instance_affine_is_instance_norm_and_an_affine_function_of_each_sample(samples, memory_format) -> None:
    torch.manual_seed(0)
    features = torch.randn(samples, 4, 6, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    inputs = [
        features.requires_grad_(),
        *(torch.randn(samples, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)),
    ]
    scale, shift = (part[:, :, None, None] for part in inputs[1:])
    wanted = F.instance_norm(features, eps=1e-5) * scale + shift
    found = instance_affine(*inputs)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    for own, other in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_instance_affine_of_a_large_slice_is_exact(memory_format) -> None:
    """torch's batch norm sums channels-last features pixel by pixel: 3e-4 off here."""
    torch.manual_seed(0)
    features = (torch.relu(torch.randn(1, 4, 256, 256) + 1)).contiguous(memory_format=memory_format)
    scale, shift = torch.rand(2, 1, 4)
    wanted = instance_affine(*(part.double().contiguous() for part in (features, scale, shift)))
    assert float((instance_affine(features, scale, shift) - wanted).abs().max()) < 5e-6


@pytest.mark.parametrize("parts", [("adain", "adacw"), ("adain",), ("adacw",)])
def test_a_block_is_its_parts_one_after_another(parts) -> None:
    torch.manual_seed(0)
    block, features, latent = PersonalizationBlock(8, parts=parts), torch.randn(2, 8, 5, 5), torch.randn(2, 512)
    wanted = features
    for part in parts:
        wanted = getattr(block, part)(wanted, latent)
    torch.testing.assert_close(block(features, latent), wanted)


def test_styles_are_computed_once_for_each_distinct_code(monkeypatch) -> None:
    generator, seen = generator_of(), []
    whole = type(generator.mapper).forward
    monkeypatch.setattr(
        type(generator.mapper), "forward", lambda self, code: seen.append(len(code)) or whole(self, code)
    )
    styles = generator.styles(CODES)  # the first and the third are equal
    assert seen == [2]
    for number, style in styles.items():
        for row, code in enumerate(CODES):
            alone = generator.personalization[number].style(generator.mapper(code[None]))
            torch.testing.assert_close(style.scale[row], alone.scale[0])
            torch.testing.assert_close(style.shift[row], alone.shift[0])


# ------------------------------------------------------------------------------------------------------- checkpointing


def test_checkpointing_gives_the_same_bytes() -> None:
    plain, checkpointing = generator_of(), generator_of()
    checkpointing.checkpoint_activations = True
    calls: list[int] = []
    checkpointing.stages["4"].register_forward_pre_hook(lambda *_: calls.append(1))
    wanted, found = computed(plain), computed(checkpointing)
    assert torch.equal(found[0], wanted[0])
    for own, other in zip(found[1:], wanted[1:], strict=True):
        assert own.keys() == other.keys()
        for name, tensor in other.items():
            assert torch.equal(own[name], tensor), name
    assert len(calls) == 2


def test_checkpointing_keeps_the_input_of_each_stage_alone() -> None:
    kept: dict[bool, list[torch.Size]] = {False: [], True: []}
    for checkpointing, shapes in kept.items():
        generator = generator_of()
        generator.checkpoint_activations = checkpointing

        def keep(tensor: torch.Tensor, shapes: list[torch.Size] = shapes) -> torch.Tensor:
            if tensor.ndim == 4 and len(tensor) in (1, len(IMAGES)) and tensor.shape[-1] >= 8:
                shapes.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            generator(IMAGES, CODES)
    assert len(kept[False]) > 20
    assert len(kept[True]) == len(generator.stages)


@pytest.mark.slow
def test_a_training_with_checkpointing_ends_in_the_same_bytes(tiny: Tiny, tmp_path) -> None:
    config = changed(tiny.config, rounds=1)
    train(config, tiny.prepared, tmp_path / "plain")
    train(changed(config, checkpoint_activations=True), tiny.prepared, tmp_path / "less")
    plain, less = results(tmp_path / "plain"), results(tmp_path / "less")
    assert {name for name in plain if plain[name] != less[name]} <= {"federation.toml"}


# ----------------------------------------------------------------------------------------------------------- precision


def test_bfloat16_convolutions_are_near_float32_ones() -> None:
    """Stated in docs/performance.md: outputs and gradients of an untrained step within 10 % of their norm."""
    single, half = generator_of(), generator_of()
    convolve_in_bfloat16(half)
    seen = set()
    for module in half.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, given, made: seen.update({given[0].dtype, made.dtype}))
    wanted, found = computed(single), computed(half)
    assert seen == {torch.float32}
    assert 0 < relative(found[0], wanted[0]) < 0.1
    flat = [torch.cat([gradient.flatten() for gradient in own[1].values()]) for own in (found, wanted)]
    assert relative(*flat) < 0.1
    assert {gradient.dtype for gradient in found[1].values()} == {torch.float32}
    assert half.state_dict().keys() == single.state_dict().keys()


def test_a_gpu_without_bfloat16_is_refused(tiny: Tiny, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    config = changed(tiny.config, training={"precision": "bfloat16"})
    with pytest.raises(UsageError, match="Tesla T4 does not compute bfloat16"):
        machine.check_machine(config, torch.device("cuda"))
    machine.check_machine(config, torch.device("cpu"))
    machine.check_machine(tiny.config, torch.device("cuda"))


# ----------------------------------------------------------------------------------------------------------- compiling


@pytest.mark.slow
def test_compiled_networks_compute_the_same_and_serve_the_next_site() -> None:
    if not can_compile("cpu"):
        pytest.skip("torch.compile does not work on this machine")
    wanted = computed(generator_of(), IMAGES[:1])
    compiled = generator_of()
    assert compile_networks([compiled], torch.device("cpu"))
    assert compiled.state_dict().keys() == generator_of().state_dict().keys()
    found = computed(compiled, IMAGES[:1])
    assert relative(found[0], wanted[0]) < 1e-4
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    another = generator_of()
    compile_networks([another], torch.device("cpu"))
    with torch.compiler.set_stance("fail_on_recompile"):
        again = computed(another, IMAGES[:1])
    assert torch.equal(again[0], found[0])


def test_where_nothing_compiles_networks_run_as_they_are_and_one_warning_says_so(monkeypatch) -> None:
    def no_compiler(function):
        raise RuntimeError("no C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    can_compile.cache_clear()
    try:
        generator = generator_of()
        with pytest.warns(UserWarning, match=r"\(no C\+\+ compiler found\); training goes on without it"):
            assert not compile_networks([generator], torch.device("cpu"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not compile_networks([generator], torch.device("cpu"))
        assert torch.equal(computed(generator)[0], computed(generator_of())[0])
    finally:
        compiling.can_compile.cache_clear()


def test_compiling_and_checkpointing_exclude_each_other(tiny: Tiny) -> None:
    config = changed(tiny.config, compile=True, checkpoint_activations=True)
    with pytest.raises(UsageError, match="compile and checkpoint_activations exclude each other"):
        machine.check_machine(config, torch.device("cpu"))


# ------------------------------------------------------------------------------------------- prefetch, memory of a GPU


def numbered(count: int, fault: int = -1) -> Iterator[Batch]:
    for number in range(count):
        if number == fault:
            raise ValueError("damaged")
        yield Batch(torch.full((2, 1, 2, 2), float(number)), torch.zeros(2, 1, 2, 2), torch.tensor([number, 0]))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_prefetched_batches_are_all_there_in_order(count) -> None:
    finished = list(prefetched(numbered(count), Batch.first))
    assert [int(batch.tasks[0]) for batch in finished] == list(range(count))
    assert all(batch.source.shape == (1, 1, 2, 2) and len(batch.tasks) == 1 for batch in finished)


def test_a_fault_of_the_data_comes_where_its_batch_is_wanted() -> None:
    made = prefetched(numbered(5, fault=3), Batch.first)
    assert [int(next(made).tasks[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="damaged"):
        next(made)


def test_the_batch_that_would_fit() -> None:
    assert machine.fitting(available=1000, fixed=200, with_one=350) == 5
    assert machine.fitting(available=300, fixed=200, with_one=350) == 0
    assert "training.batch_size = 5 would fit" in machine.too_large(8, machine.fitting(1000, 200, 350))
    assert "training.batch_size = 7 would fit" in machine.too_large(8, 12)  # 8 did not, whatever the estimate says
    assert "does not hold a step of one slice" in machine.too_large(8, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not tried on one")
@pytest.mark.parametrize("options", [{}, {"training": {"precision": "bfloat16"}}, {"compile": True}])
def test_a_gpu_trains_with_every_option(tiny: Tiny, tmp_path, options) -> None:
    config = changed(tiny.config, device="cuda", rounds=1, **options)
    assert train(config, tiny.prepared, tmp_path / "run").round == 1
