"""What learns, when, and what is scored on the way: the options of a fine-tuning, held by the bits of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shapes_store import NETWORK, suite_values, write_seen

from downstream.cost import step_cost
from downstream.finetune import recipe, run_finetune
from downstream.freezing import Frozen, count_trained
from downstream.plan import final_cells
from downstream.results import read_cell
from downstream.schedule import FinetuneOptim
from downstream.segmentation import Segmentation
from downstream.setup import prepare
from downstream.snapshots import Keep, read_kept
from downstream.suite import load_suite
from ssl3d import checkpoint, config
from ssl3d.loop import _objective
from ssl3d.models.backbone import Backbone
from ssl3d.models.dino_vit import DinoViT
from ssl3d.models.lora import LoRALinear, add_lora
from ssl3d.models.primus import Primus
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.unet3d import UNet3D
from ssl3d.models.vit import ViT
from ssl3d.schema import ConfigError
from ssl3d.train import train

SIZE = (16, 16, 24)


def resenc() -> ResEncUNet:
    return ResEncUNet("S", 1, NETWORK)


def vit() -> ViT:
    return ViT("tiny", 1, (8, 8, 8))


TRANSFORMERS = {
    "ViT": vit,
    "DinoViT": lambda: DinoViT(24, 2, 2, 1, (8, 8, 8), SIZE),
    "Primus": lambda: Primus("tiny", 1, (8, 8, 8), SIZE),
}


def write_weights(folder: Path, backbone: Backbone) -> Path:
    content = {
        "step": 5, "recipe": {"run": {"seed": 1}}, "average": None, "exported": "backbone.",
        "model": {f"backbone.{k}": v for k, v in backbone.state_dict().items()},
        "backbone_spec": checkpoint.spec_to_dict(backbone.spec()),
    }  # fmt: skip
    checkpoint.save(folder, content)
    write_seen(folder, ["elsewhere"], ["someone"])
    return folder


@pytest.fixture
def make(labelled_store, split_file, tmp_path):
    """make(backbone, **finetune options) -> (context, measure, cell of the run)."""

    def made(build: Callable[[], Backbone], **options):
        torch.manual_seed(1)
        run = write_weights(tmp_path / "mae", build())
        values = suite_values(labelled_store, split_file, pictures=0, precision="32-true")
        optim = {"lr": 0.01, "weight_decay": 0.5} | options.pop("optim", {})
        finetune = values["measures"]["finetune"] | {"augment": None, "optim": optim, "n_labelled": [1], "seeds": 1}
        suite = load_suite(values | {"measures": {"finetune": finetune | options}})
        context, split, arms, _ = prepare([run], suite, tmp_path / "out")
        measure = suite.measures["finetune"]
        choices = {("finetune", arm.name): measure.grid()[0] for arm in arms}
        (cell,) = [c for c in final_cells(context, split, arms, choices) if not c.arm.is_scratch]
        return context, measure, cell

    return made


def states(made) -> tuple[dict, dict, set[str]]:
    """(state before, after training, names of the encoder's parameters)."""
    context, measure, cell = made
    settings = config.load(recipe(context, measure, cell))
    before, _ = _objective(settings, Path(settings.run.dir))
    start = {k: v.clone() for k, v in before.state_dict().items()}
    after = checkpoint.load_objective(train(settings)).state_dict()
    return start, after, {f"backbone.{n}" for n in before.backbone.encoder_parameter_names()}


@pytest.mark.parametrize("train_part", ["encoder_frozen", "decoder"])
def test_a_frozen_encoder_keeps_its_bits(make, train_part):
    start, after, encoder = states(make(resenc, train=train_part))
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved and not moved & encoder and "head.projection.weight" in moved
    assert any(name.startswith("backbone.decoder") for name in moved)


def test_lora_moves_its_terms_decoder_and_head_alone(make):
    start, after, encoder = states(make(vit, train="lora"))
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    own = {name.rpartition(".")[2] for name in moved & encoder}
    assert own == {"lora_a", "lora_b"}
    assert "head.projection.weight" in moved and any(name.startswith("backbone.decoder") for name in moved)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_lora_begins_as_the_network_and_counts_what_it_adds(name):
    torch.manual_seed(0)
    backbone = TRANSFORMERS[name]().eval()
    x = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        before = backbone.encode(x)[0]
    Frozen(backbone, "lora", rank=3)
    with torch.no_grad():
        assert torch.equal(backbone.encode(x)[0], before)
    layers = [m for m in backbone.modules() if isinstance(m, LoRALinear)]
    assert len(layers) == backbone.depth * (4 if name == "Primus" else 2)
    trained, lora = count_trained(backbone)
    assert lora == sum(3 * sum(m.weight.shape) for m in layers)
    encoder = backbone.encoder_parameter_names()
    assert trained == lora + sum(p.numel() for n, p in backbone.named_parameters() if n not in encoder)
    layers[0].lora_b.data.normal_()
    assert not torch.equal(backbone.encode(x)[0], before)


def test_a_lora_layer_is_the_sum_of_its_terms():
    base = torch.nn.Linear(5, 7)
    layer = LoRALinear(base, rank=2, alpha=6.0)
    layer.lora_b.data.normal_()
    x = torch.randn(3, 4, 5)
    expected = base(x) + 3.0 * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ValueError, match="rank 0"):
        add_lora(vit(), 0, 1.0)


def test_norm_statistics_stay_with_the_decoder_alone():
    """A network with batch norm: `encoder_frozen` goes on averaging, `decoder` does not."""
    x = torch.randn(2, 1, 16, 16, 32) + 3
    for part, stays in (("encoder_frozen", False), ("decoder", True)):
        torch.manual_seed(0)
        task = Segmentation(UNet3D(), (16, 16, 32), [1], train=part).eval().train()
        encoder = {f"backbone.{n}" for n in task.backbone.encoder_parameter_names()}
        before = {k: v.clone() for k, v in task.state_dict().items() if k in encoder and "running" in k}
        task.logits(x)
        assert before and all(torch.equal(v, task.state_dict()[k]) == stays for k, v in before.items())


def test_the_head_is_drawn_the_same_whatever_learns():
    heads = []
    for part in ("all", "decoder", "lora"):
        torch.manual_seed(3)
        heads.append(Segmentation(vit(), SIZE, [1, 2], train=part).head.state_dict()["projection.weight"])
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], heads[2])


def test_lora_without_attention_is_refused_in_a_sentence(make):
    with pytest.raises(ValueError, match=r"^measures.finetune: train is lora, but ResEncUNet has no attention"):
        make(resenc, train="lora")


def test_scoring_on_the_way_changes_nothing(make, tmp_path):
    context, measure, cell = make(resenc, steps=4, optim={"ema": 0.5})
    plain = config.load(recipe(context, measure, cell))
    end = checkpoint.open_run(train(plain))
    watched = config.load(recipe(context, measure, cell), [f"run.dir={tmp_path / 'watched'}"])
    run = train(watched, observers=[Keep([1, 3])])
    other = checkpoint.open_run(run)
    for part in ("model", "average"):
        assert all(torch.equal(v, other[part][k]) for k, v in end[part].items())
    kept = read_kept(run, 3)
    assert set(kept) == set(end["average"]) and any(not torch.equal(v, end["average"][k]) for k, v in kept.items())


@pytest.mark.slow
def test_steps_on_the_way_are_rows_of_their_own(make):
    context, measure, cell = make(resenc, steps=3, score_at=[1, 3])
    run_finetune(context, measure, cell)
    table = read_cell(context.out, context.key(cell))
    assert sorted(set(table["step"])) == [1, 3]
    first, last = (table[table["step"] == step] for step in (1, 3))
    assert len(first) == len(last) and set(first["patient"]) == set(cell.scored)
    bare = make(resenc, steps=3)
    run_finetune(*bare)
    alone = read_cell(context.out, bare[0].key(bare[2]))
    assert alone["value"].tolist() == last["value"].tolist()


def test_the_grid_is_the_product_of_what_is_listed():
    optim = FinetuneOptim(lr=[0.1, 0.01], schedule=["constant", "cosine"], layer_decay=[None, 0.7], first="encoder")
    grid = optim.grid()
    assert len(grid) == 8 and grid[0] == (("lr", 0.01), ("schedule", "constant"), ("layer_decay", None))
    assert FinetuneOptim(lr=[0.1]).grid() == [(("lr", 0.1),)]
    section = FinetuneOptim(lr=[0.1], freeze_steps=[5], first="encoder").section((("lr", 0.1),))
    assert section["rest_freeze_until"] == 5 and section["schedule"] == "cosine" and "first" not in section
    head = FinetuneOptim(lr=[0.1, 1.0], freeze_steps=[0, 7]).section((("lr", 1.0), ("freeze_steps", 7)))
    assert head["encoder_freeze_until"] == 7 and head["lr"] == 1.0


def test_a_lone_value_is_a_list_of_one(tmp_path):
    values = suite_values(tmp_path / "store.zarr", tmp_path / "split.json")
    values["measures"]["finetune"]["optim"] = {"lr": 0.1, "schedule": "constant", "layer_decay": None}
    optim = load_suite(values).measures["finetune"].optim
    assert (optim.lr, optim.schedule, optim.layer_decay, optim.warmup_steps) == ([0.1], ["constant"], [None], [0])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.schedule=[cosine,cosine]", "optim.schedule is .* without repeats"),
        ("optim.warmup_steps=[2]", "optim.warmup_steps is .* below the 2 steps"),
        ("optim.freeze_steps=5", "optim.freeze_steps is .* below the 2 steps"),
        ("optim.layer_decay=1.5", "optim.layer_decay is .* at most 1"),
        ("score_at=[3]", "score_at is .* from 1 to the 2"),
        ("train=head", "train is 'head'; it must be one of all, encoder_frozen, decoder, lora"),
        ("lora_rank=0", "lora_rank is 0"),
        ("slices=0", "slices is 0; it must be null or above 0"),
    ],
)
def test_faults_of_options_name_their_key(tmp_path, override, words):
    values = suite_values(tmp_path / "store.zarr", tmp_path / "split.json")
    with pytest.raises(ConfigError, match=f"measures.finetune.{words}"):
        load_suite(values, [f"measures.finetune.{override}"])


def test_layer_decay_of_a_frozen_encoder_is_refused(tmp_path):
    values = suite_values(tmp_path / "store.zarr", tmp_path / "split.json")
    with pytest.raises(ConfigError, match=r"optim.layer_decay is \[0.5\]; it must be left out: train is decoder"):
        load_suite(values, ["measures.finetune.train=decoder", "measures.finetune.optim.layer_decay=0.5"])


def test_the_same_time_is_the_same_counted_operations(make):
    network = vit().spec()
    everything, part = (step_cost(network, SIZE, t) for t in ("all", "decoder"))
    assert part < everything < 4 * part
    context, measure, cell = make(vit, train="decoder", same_time=True, steps=100)
    steps = round(100 * everything / part)
    assert measure.steps_of(cell.arm) == recipe(context, measure, cell)["run"]["steps"] == steps
    told = measure.describe(context, [cell.arm])
    assert told["train"] == "decoder" and told["baseline"] == "a frozen random encoder"
    assert make(vit, same_time=True, steps=100)[1].steps_of(cell.arm) == 100
