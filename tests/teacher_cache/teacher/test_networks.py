import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from repository import REPOSITORY
from safetensors.torch import save_file
from small import CPU, TEACHER, cache_recipe, fill_cache

from teacher_cache.cache.slab import read_slab
from teacher_cache.recipes.cache_recipe import TeacherSection
from teacher_cache.teacher.member import TeacherError
from teacher_cache.teacher.networks import load_teacher, weights_sha256
from teacher_cache.verification.inspection import inspect

VIT = "deit_tiny_patch16_224"  # takes one size only


def load(classes=3, has_class_map=False, size=32, **table):
    section = TeacherSection(model=table.pop("model", TEACHER), **table)
    return load_teacher(
        section, class_count=classes, has_class_map=has_class_map, size=size, device=CPU
    )


def pixels(count=4, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def network(classes=3, seed=7):
    torch.manual_seed(seed)
    return timm.create_model(TEACHER, num_classes=classes).eval()


def test_random_weights_come_from_the_recipes_seed_alone():
    state = torch.random.get_rng_state()
    one, same, other = (load(pretrained=False, seed=seed) for seed in (1, 1, 2))
    assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert one.class_count == 3
    assert torch.equal(torch.random.get_rng_state(), state)


def test_logits_are_those_of_the_plain_network_on_normalised_images(tmp_path):
    plain = network()
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    teacher = load(checkpoint=tmp_path / "weights.safetensors")
    config = timm.data.resolve_model_data_config(plain)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = pixels().permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        expected = plain((images - mean) / std)
    torch.testing.assert_close(teacher.logits(pixels()), expected, rtol=1e-4, atol=1e-4)
    assert teacher.weights_sha256 == weights_sha256(plain)


def test_the_head_never_computes_in_tf32_and_the_setting_is_left_as_it_was():
    teacher, seen = load(model="mobilenetv3_small_050", pretrained=False), []
    head = teacher.members[0].network.conv_head  # a convolution in the head
    head.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    teacher.logits(pixels())
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_checkpoint_is_a_state_dict_bare_or_wrapped(tmp_path, wrapper):
    state = network().state_dict()
    torch.save(state if wrapper is None else {wrapper: state}, tmp_path / "weights.pt")
    teacher = load(checkpoint=tmp_path / "weights.pt")
    assert teacher.weights_sha256 == weights_sha256(network())


PRETRAINED = """
import sys
from test_networks import load
teacher = load(classes=1000, size=160, pretrained=True)
print(teacher.class_count, teacher.weights_sha256)
"""


def test_pretrained_weights_come_through_timms_own_loading_of_a_hubs_cache(tmp_path):
    """As after a download: the folders that huggingface_hub keeps, and no network."""
    plain = network(classes=1000)
    repository = timm.get_pretrained_cfg("test_resnet").hf_hub_id
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(plain.state_dict(), snapshot / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PRETRAINED],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        },
    )  # fmt: skip
    assert done.stdout.split() == ["1000", weights_sha256(plain)], done.stderr


def test_features_are_computed_in_the_precision_of_the_recipe_and_the_head_in_float32():
    images = pixels()
    full, half = (load(pretrained=False, precision=each) for each in ("fp32", "bf16"))
    one, other = full.logits(images), half.logits(images)
    assert one.dtype == other.dtype == torch.float32
    difference = (one - other).abs().max() / one.abs().max()
    assert 0 < difference < 0.05  # 8 bits of bfloat16 in a network of a dozen layers
    head = half.members[0].network.get_classifier()
    assert not torch.equal(other, other.bfloat16().float())  # so the head ran in float32
    assert head.weight.dtype == torch.float32


def test_the_identity_says_what_answers_depend_on():
    teacher = load(pretrained=False)
    identity = teacher.identity()
    assert identity["weights_sha256"] == teacher.weights_sha256
    assert identity["precision"] == "fp32"
    (member,) = identity["members"]
    config = timm.get_pretrained_cfg("test_resnet")
    assert member["mean"] == pytest.approx(config.mean, abs=1e-6)
    assert member["std"] == pytest.approx(config.std, abs=1e-6)
    assert json.loads(json.dumps(identity)) == identity


def test_a_short_batch_is_padded_to_the_full_one():
    teacher, images = load(pretrained=False), pixels(5)
    short = teacher.logits_of_batch(images[:3], 5)
    assert torch.equal(short, teacher.logits(torch.cat([images[:3], 0 * images[3:]]))[:3])


def test_a_pickle_with_code_is_refused_unexecuted(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(TeacherError, match=r"holds more than tensors \(.*open\).* expected"):
        load(checkpoint=tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_bad_checkpoints_are_named_with_what_was_expected(tmp_path):
    with pytest.raises(TeacherError, match="no such file"):
        load(checkpoint=tmp_path / "nowhere.pt")
    for name, content in (("torn.safetensors", b"\x08"), ("torn.pt", b"PK\x03\x04"), ("a.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TeacherError, match="cannot be read"):
            load(checkpoint=tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(TeacherError, match="expected a state dict of tensors"):
        load(checkpoint=tmp_path / "list.pt")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    with pytest.raises(TeacherError, match="weights of another network than .* missing .* unknown"):
        load(checkpoint=tmp_path / "vit.pt")


def test_a_checkpoint_of_another_class_count_is_refused_unless_a_class_map_says_how(tmp_path):
    torch.save(network(classes=5).state_dict(), tmp_path / "five.pt")
    with pytest.raises(TeacherError, match="knows 5 classes, the data has 3: .*images.class_map"):
        load(checkpoint=tmp_path / "five.pt")
    assert load(checkpoint=tmp_path / "five.pt", has_class_map=True).class_count == 5
    with pytest.raises(TeacherError, match="knows 5 classes, the data has 6"):
        load(checkpoint=tmp_path / "five.pt", classes=6, has_class_map=True)


def test_an_unknown_model_a_wrong_size_and_a_wrong_argument_are_refused_with_the_remedy():
    with pytest.raises(TeacherError, match="is no timm model, .*similar: .*resnet50"):
        load(model="resnet5O", pretrained=False)
    with pytest.raises(
        TeacherError, match="does not run on views.size = 32 .*set views.size = 224"
    ):
        load(model=VIT, pretrained=False)
    assert load(model=VIT, pretrained=False, kwargs={"img_size": 32}).class_count == 3
    with pytest.raises(TeacherError, match="could not be built: TypeError"):
        load(pretrained=False, kwargs={"no_such_argument": 1})


@pytest.mark.parametrize(
    ("model", "size"), [("crossvit_tiny_240", 240), ("coat_tiny", 224), ("efficientvim_m1", 224)]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_whose_features_are_several_tensors_answers(model, size, precision):
    teacher = load(model=model, pretrained=False, size=size, precision=precision)
    with torch.inference_mode():
        images = teacher.members[0].normalization.images(pixels(2, size))
        expected = teacher.members[0].network(images)
    found = teacher.logits(pixels(2, size))
    assert found.dtype == torch.float32
    if precision == "fp32":
        assert torch.equal(found, expected)
    else:
        assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
        assert not torch.equal(found, found.bfloat16().float())


def test_what_gives_no_logits_of_rgb_images_is_refused_with_the_remedy():
    for kwargs, words in (
        ({"features_only": True}, "maps an image to a list, expected logits .* features_only"),
        ({"in_chans": 1}, "takes images of 1 channels, expected 3, .* leave teacher.kwargs.in_cha"),
    ):
        with pytest.raises(TeacherError, match=words):
            load(pretrained=False, kwargs=kwargs)


def test_kwargs_reach_the_constructor():
    assert load(pretrained=False, kwargs={"drop_rate": 0.3}).members[0].network.drop_rate == 0.3


def member(seed, **table):
    return {"model": TEACHER, "pretrained": False, "seed": seed, **table}


def test_an_ensemble_answers_with_the_mean_of_its_members_log_probabilities(tmp_path):
    save_file(network(seed=9).state_dict(), tmp_path / "nine.safetensors")
    by_file = {"model": TEACHER, "checkpoint": tmp_path / "nine.safetensors"}
    other_mean = member(2, model="test_vit", kwargs={"img_size": 32, "num_classes": 3})
    alone = [
        load(pretrained=False, seed=1),
        load(**by_file),
        load(**other_mean),  # it normalises with a mean of its own
    ]
    ensemble = load(pretrained=False, seed=1, ensemble=[by_file, other_mean])
    logp = [teacher.logits(pixels()).double().log_softmax(dim=1) for teacher in alone]
    assert not torch.allclose(logp[0], logp[1], atol=1e-3)
    expected = torch.stack(logp).mean(dim=0)
    torch.testing.assert_close(ensemble.logits(pixels()).double(), expected, rtol=0.0, atol=1e-6)
    assert ensemble.class_count == 3
    digests = {teacher.weights_sha256 for teacher in (*alone, ensemble)}
    assert len(digests) == 4


def test_an_ensembles_weights_are_told_apart_by_every_member():
    def digest(*seeds):
        first, *others = seeds
        ensemble = [member(seed) for seed in others]
        return load(pretrained=False, seed=first, ensemble=ensemble).weights_sha256

    assert digest(1, 2) == digest(1, 2) != digest(1, 3)
    assert digest(1) == load(pretrained=False, seed=1).weights_sha256


def test_members_that_do_not_fit_are_named(tmp_path):
    torch.save(network(classes=5).state_dict(), tmp_path / "five.pt")
    five = {"model": TEACHER, "checkpoint": tmp_path / "five.pt"}
    with pytest.raises(TeacherError, match="test_resnet knows 5 classes, the data has 3"):
        load(pretrained=False, ensemble=[five])
    with pytest.raises(TeacherError, match="know 3, 5 classes, expected the same ones of all"):
        load(pretrained=False, ensemble=[five], has_class_map=True)
    with pytest.raises(TeacherError, match="resnet5O.* is no timm model"):
        load(pretrained=False, ensemble=[member(1, model="resnet5O")])


def test_a_cache_of_an_ensemble_holds_probabilities_and_names_every_member(scans, tmp_path):
    recipe = cache_recipe(teacher__ensemble=[member(2)], views__count=1)
    cache = fill_cache(tmp_path / "cache", scans / "train", recipe)
    facts = inspect(cache)
    assert (facts["teacher"], facts["complete views"]) == (f"{TEACHER} + {TEACHER}", 1)
    slab = read_slab(cache, 0)
    kept, tail = slab.logp_NK.astype(np.float64), slab.tail_NT[:, 0].astype(np.float64)
    total = np.exp(kept).sum(axis=1) + np.exp(tail)
    np.testing.assert_allclose(total, 1.0, atol=2e-3)  # a mean of log-probabilities sums to less
