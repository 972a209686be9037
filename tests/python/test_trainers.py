"""The trainers' own code, from PyPI, on a store's exports and adapters; skipped where not installed.

    pip install speculators==0.9.0 sae-lens==6.54.12
    pip install --no-deps specforge==0.2.0        # its training loop needs a GPU, its reader does not
"""

import math
import pathlib

import pytest

from export_support import HIDDEN, SAMPLE_LENGTHS, draft_tokens, export_main, extract_draft_store
from support import GOLDEN

torch = pytest.importorskip("torch")
pytest.importorskip("nexus_librarian")
from nexus_librarian import ActivationStore  # noqa: E402
from nexus_librarian.adapters import SpeculatorsDataset, sae_lens_batches  # noqa: E402

SEQUENCE_TOKENS, DRAFT_VOCABULARY = 64, 32
EMBED_AND_LAYERS = ["embed", *HIDDEN]
TENSORS = ["hidden_states", "input_ids", "verifier_last_hidden_states", "loss_mask", "lengths",
           "position_ids"]


@pytest.fixture(scope="module")
def store(librarian, tmp_path_factory):
    """Path of a store of the golden llama: three states, both final ones, a loss mask."""
    folder = tmp_path_factory.mktemp("trainers")
    return extract_draft_store(librarian, folder / "store", draft_tokens(folder / "t.safetensors"),
                               captures="embed,resid_post@[0,1],final.pre_norm,final.post_norm")


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    """exported("speculators", "--fp8") -> the folder of such an export of the store."""

    def export(to, *options):
        out = tmp_path_factory.mktemp("exports") / "out"
        assert export_main(store, "--to", to, "--out", out, "--capture",
                           ",".join(EMBED_AND_LAYERS), *options) == 0
        return out

    return export


# speculators


@pytest.fixture(scope="module")
def speculators_data():
    return pytest.importorskip("speculators.train.data")


def own_dataset(speculators_data, folder, **options):
    """speculators' dataset of an export."""
    return speculators_data.ArrowDataset(SEQUENCE_TOKENS, folder, on_missing="raise", **options)


def test_speculators_own_dataset_gives_what_the_adapter_gives(store, exported, speculators_data):
    """Goal: both ways into speculators are one: every tensor, type and length equal."""
    ours = SpeculatorsDataset(store, EMBED_AND_LAYERS)
    theirs = own_dataset(speculators_data, exported("speculators"))
    assert len(ours) == len(theirs) == len(SAMPLE_LENGTHS)
    assert ours.approx_lengths == [int(length) for length in theirs.approx_lengths]
    assert ours.layer_ids == [0, 1, 2]
    for index in range(len(ours)):
        one, other = ours[index], theirs[index]
        assert list(one) == TENSORS and set(other) == set(TENSORS)
        for name in TENSORS:
            assert torch.equal(one[name].to(other[name].dtype), other[name]), name
        assert one["hidden_states"].dtype == other["hidden_states"].dtype == torch.bfloat16


def test_speculators_reads_its_fp8_form_as_it_would_have_written_it(exported, speculators_data):
    """Goal: codes and scales are bit for bit those of speculators' own quantiser."""
    fp8 = pytest.importorskip("hs_connectors.fp8_utils")
    load_file = pytest.importorskip("safetensors.torch").load_file
    from hs_connectors.transfer import FP8Transfer
    exact, folder = exported("speculators"), exported("speculators", "--fp8")
    theirs = own_dataset(speculators_data, folder,
                         transfer=FP8Transfer(folder / "hidden_states"))
    for record in range(len(SAMPLE_LENGTHS)):
        got, states = (load_file(path / f"hidden_states/hs_{record}.safetensors")
                       for path in (folder, exact))
        codes, scales = fp8.quantize_tensor_to_fp8(states["hidden_states"])
        assert torch.equal(got["hidden_states"].view(torch.uint8), codes.view(torch.uint8))
        assert torch.equal(got[fp8.SCALES_KEY], scales)
        assert theirs[record]["hidden_states"].dtype == torch.bfloat16


def loader(dataset):
    """speculators' own loader: its sampler, its collator, its shift for EAGLE-3."""
    from speculators.models.eagle3.data import shift_batch
    from speculators.train.dataloader import _setup_dataloader
    return _setup_dataloader(dataset, SEQUENCE_TOKENS, 64, num_workers=0,
                             num_target_layers=len(EMBED_AND_LAYERS), preprocess=shift_batch)


def eagle3_draft(folder):
    """speculators' EAGLE-3 draft model for the golden llama, with the vocabulary of an export."""
    from speculators.models.eagle3.core import Eagle3DraftModel
    from speculators.train.vocab_mapping import build_vocab_mappings_from_distribution
    from transformers import LlamaConfig
    verifier = str(GOLDEN / "llama/model")
    frequencies = torch.load(folder / "token_freq.pt", weights_only=True)
    d2t, t2d = build_vocab_mappings_from_distribution(frequencies, DRAFT_VOCABULARY, 40)
    config = LlamaConfig(vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    torch.manual_seed(0)
    return Eagle3DraftModel.from_training_args(
        config, t2d, d2t, draft_vocab_size=DRAFT_VOCABULARY, norm_before_residual=True, ttt_steps=3,
        verifier_name_or_path=verifier, target_layer_ids=[0, 1, 2], draft_attn_impl="eager").float()


def losses(model, loader, steps=12):
    """Loss of each step of training on the loader's batches."""
    from speculators.losses import resolve_loss_config
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    values = []
    while len(values) < steps:
        for batch in loader:
            batch = {name: value.float() if "hidden_states" in name else value
                     for name, value in batch.items() if hasattr(value, "shape")}
            _, loss, _ = model(**batch, ttt_steps=3, ttt_step_loss_decay=1.0,
                               loss_config=resolve_loss_config("kl_div", "eager"))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
    return values


def test_an_eagle3_draft_learns_from_the_export_and_from_the_adapter_alike(
        store, exported, speculators_data):
    """Goal: speculators' EAGLE-3 model, loss, sampler and collator run on both, and its loss falls.

    Method: on the CPU by its model's own forward(); its Trainer class wants a GPU. Equal batches in
    equal order give equal losses.
    """
    folder = exported("speculators")
    by_adapter = losses(eagle3_draft(folder), loader(SpeculatorsDataset(store, EMBED_AND_LAYERS)))
    by_export = losses(eagle3_draft(folder), loader(own_dataset(speculators_data, folder)))
    assert by_adapter == by_export
    assert all(map(math.isfinite, by_adapter))
    assert sum(by_adapter[-3:]) < 0.9 * sum(by_adapter[:3])


def test_the_head_of_the_draft_finds_the_teachers_tokens_in_the_state_before_the_norm(
        store, exported, speculators_data):
    """Goal: what speculators makes of `verifier_last_hidden_states` are the teacher's own logits.

    Method: its verifier_norm and verifier_lm_head on the adapter's state, against the golden model's
    head on the state after the norm, which the store has too.
    """
    folder = exported("speculators")
    draft, dataset = eagle3_draft(folder), SpeculatorsDataset(store, EMBED_AND_LAYERS)
    plain, draft_ids = ActivationStore(store), draft.t2d.nonzero().flatten()
    load_file = pytest.importorskip("safetensors.torch").load_file
    files = map(load_file, (GOLDEN / "llama/model").glob("*.safetensors"))
    head = next(file["lm_head.weight"] for file in files if "lm_head.weight" in file).float()
    for sample in range(len(dataset)):
        state = dataset[sample]["verifier_last_hidden_states"].float()
        with torch.no_grad():
            targets = draft.verifier_lm_head(draft.verifier_norm(state))
        truth = plain.sample(sample)["final.post_norm"].float() @ head[draft_ids].T
        torch.testing.assert_close(targets, truth, rtol=0.02,
                                   atol=0.02 * float(truth.abs().max()))


def test_speculators_workers_take_a_pickled_adapter(store, speculators_data):
    """Its loader spawns workers."""
    dataset = SpeculatorsDataset(store, EMBED_AND_LAYERS, max_len=20)
    spawned = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=1, multiprocessing_context="spawn",
        collate_fn=speculators_data.CollateFn(SEQUENCE_TOKENS, 64, num_target_layers=3))
    batches = list(spawned)
    assert [batch["hidden_states"].shape for batch in batches] == [(1, SEQUENCE_TOKENS, 192)] * 3
    first = batches[0]["hidden_states"][0]
    at = 0
    for index in range(4):
        expected = dataset[index]["hidden_states"][: SEQUENCE_TOKENS - at]
        assert len(dataset[index]["input_ids"]) == min(20, SAMPLE_LENGTHS[index])
        assert torch.equal(first[at : at + len(expected)], expected)
        at += len(expected)


# SAELens


@pytest.fixture(scope="module")
def sae_lens():
    return pytest.importorskip("sae_lens")


def sae(sae_lens, normalize="expected_average_only_in"):
    torch.manual_seed(0)
    return sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(
        d_in=64, d_sae=128, dtype="float32", normalize_activations=normalize, l1_coefficient=0.1))


def trainer_config(samples):
    from sae_lens.config import SAETrainerConfig
    return SAETrainerConfig(total_training_samples=samples, train_batch_size_samples=16, lr=1e-3, lr_end=1e-4,
                            n_batches_for_norm_estimate=8)


class Recorded:
    """A data provider that keeps the norms of what it gave."""

    def __init__(self, batches):
        self._batches, self.given = batches, []

    def __iter__(self):
        return self

    def __next__(self):
        self.given.append(next(self._batches))
        return self.given[-1]


def test_sae_lens_trains_on_a_store_and_its_loss_falls(store, sae_lens):
    """Goal: SAETrainer.fit() over several epochs, with its own estimate of the norm.

    Method: the reconstruction error of the trained SAE on the store's rows is below the untrained's.
    """
    from sae_lens.training.sae_trainer import SAETrainer
    model, rows = sae(sae_lens), torch.cat(list(
        batch for batch, _ in zip(sae_lens_batches(store, HIDDEN[1], 16, shuffle=False), range(8))))
    scale = 64**0.5 / rows.norm(dim=-1).mean()

    def error(trained, values):
        with torch.no_grad():
            return float((trained(values) - values).pow(2).mean() / values.pow(2).mean())

    before = error(model, rows * scale)
    trainer = SAETrainer(trainer_config(16 * 120), model, sae_lens_batches(store, HIDDEN[1], 16))
    trained = trainer.fit()
    assert trainer.n_training_steps == 120
    assert error(trained, rows) < 0.5 * before


def test_sae_lens_trains_several_saes_on_the_same_tokens(store, sae_lens):
    """Goal: MultiSAETrainer takes dicts of one batch each for two hooks; rows are the same tokens."""
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer
    provider = Recorded(sae_lens_batches(store, HIDDEN, 16))
    trainer = MultiSAETrainer(
        cfg=trainer_config(16 * 4), saes={"a": sae(sae_lens, "none"), "b": sae(sae_lens, "none")},
        hook_names={"a": HIDDEN[0], "b": HIDDEN[1]}, data_provider=provider)
    trainer.fit()
    plain = ActivationStore(store)
    both = torch.cat([torch.cat([plain.sample(i)[name].float() for name in HIDDEN], dim=1)
                      for i in range(len(plain))])
    given = torch.cat([torch.cat([batch[name] for name in HIDDEN], dim=1)
                       for batch in provider.given])
    assert len(provider.given) == 4
    assert {tuple(row) for row in given.tolist()} <= {tuple(row) for row in both.tolist()}


# SpecForge


@pytest.fixture(scope="module")
def specforge_reader():
    return pytest.importorskip("specforge.runtime.data_plane.offline_reader")


def test_specforge_own_reader_and_loader_give_the_stores_states(store, exported, specforge_reader):
    """Goal: its manifest reader finds every record whole, and its loader with its EAGLE-3 transform
    gives layers as `hidden_state` and the state after the norm as `target`."""
    from specforge.algorithms.eagle3.data import build_offline_collator, build_offline_normalizer
    from specforge.runtime.data_plane.feature_dataloader import FeatureDataLoader
    from specforge.runtime.data_plane.feature_store import LocalFeatureStore
    refs = specforge_reader.OfflineManifestReader(
        str(exported("specforge")), max_len=SEQUENCE_TOKENS, validate_files=True).read()
    assert len(refs) == len(SAMPLE_LENGTHS)
    plain, batch_size = ActivationStore(store), 2
    loaded = FeatureDataLoader(
        LocalFeatureStore(), refs=refs, batch_size=batch_size, collate_fn=build_offline_collator(),
        per_sample_transform=build_offline_normalizer(SEQUENCE_TOKENS))
    rows = [{name: values[row] for name, values in batch.tensors.items()}
            for batch in loaded for row in range(batch_size)]
    for ref, got in zip(refs, rows, strict=True):
        sample = int(pathlib.Path(ref.feature_store_uri).stem.removeprefix("data_"))
        length, truth = SAMPLE_LENGTHS[sample], plain.sample(sample)
        assert ref.num_tokens == length
        hidden = torch.cat([truth[name] for name in EMBED_AND_LAYERS], dim=1)
        assert torch.equal(got["target"][:length], truth["final.post_norm"])
        assert torch.equal(got["hidden_state"][:length], hidden)
        assert torch.equal(got["input_ids"][:length], truth["input_ids"])
        # Its transform: nothing follows a sample's last token.
        assert got["loss_mask"][: length - 1].tolist() == truth["loss_mask"][:-1].tolist()
        assert int(got["loss_mask"][length - 1 :].sum()) == 0


def test_specforge_counts_the_vocabulary_of_the_loss_tokens(store, exported, specforge_reader):
    vocabulary = pytest.importorskip("specforge.training.vocab_mapping")
    plain = ActivationStore(store)
    ids = torch.cat([plain.sample(i, [])["input_ids"][plain.sample(i, [])["loss_mask"]]
                     for i in range(len(plain))])
    counts = vocabulary.count_effective_feature_tokens(str(exported("specforge")))
    assert counts == {int(token): int((ids == token).sum()) for token in ids.unique()}
