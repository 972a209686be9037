"""Models that the hub's own client has downloaded to this machine.

Goal: what is there is read from there and left as it is; what is not, or not whole, comes from the
hub.
Method: a cache laid out as the public client leaves it, beside a hub that counts requests.
"""

import pytest

from hub_content import write_cache
from support import last_run

BAD_INPUT = 3
NAME, MODEL = "org/tiny-llama", "hf://org/tiny-llama"
FILES = 3  # Weight files of the model.
WEIGHTS = "*.safetensors"


def cache_at_hf_hub_cache(monkeypatch, folder):
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    return folder / "cache"


def cache_at_hf_home(monkeypatch, folder):
    monkeypatch.setenv("HF_HOME", str(folder / "home"))
    return folder / "home/hub"


def cache_at_home(monkeypatch, folder):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(folder))
    return folder / ".cache/huggingface/hub"


def tree(folder):
    """{path: what would change if anybody touched it}."""
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.lstat().st_size,
                   path.lstat().st_mode) for path in [folder, *folder.rglob("*")]}


def files_asked(hub):
    return [r for r in hub.requests if r.origin == "cdn" or "/resolve" in r.path]


@pytest.fixture
def write_to_cache(hub, monkeypatch, tmp_path):
    """write_to_cache(commit): the model as of the commit (main's now); returns its snapshot."""
    cache = cache_at_hf_hub_cache(monkeypatch, tmp_path)
    repository = hub.repositories[NAME]
    return lambda commit=None: write_cache(cache, repository,
                                           commit or repository.branches["main"])


@pytest.mark.parametrize("locate", [cache_at_hf_hub_cache, cache_at_hf_home, cache_at_home])
def test_a_model_in_the_cache_is_read_from_there_and_left_as_it_is(locate, hub, extract_right,
                                                                   monkeypatch, tmp_path):
    cache = locate(monkeypatch, tmp_path)
    write_cache(cache, hub.repositories[NAME], hub.repositories[NAME].branches["main"])
    before = tree(cache)
    extract_right(MODEL)
    assert files_asked(hub) == []
    assert len(hub.requests) == 1  # Which commit it is now.
    assert tree(cache) == before


def test_a_named_commit_in_the_cache_needs_no_hub(hub, write_to_cache, extract_right):
    commit = hub.repositories[NAME].branches["main"]
    write_to_cache(commit)
    extract_right(f"{MODEL}@{commit}")
    assert hub.requests == []


def test_offline_the_cache_says_which_commit_it_is(hub, write_to_cache, extract_right, monkeypatch):
    write_to_cache()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    extract_right(MODEL)
    assert hub.requests == []


def test_offline_a_model_that_is_not_cached_is_refused(hub, refused, ragged_job, monkeypatch,
                                                       memory_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(*ragged_job.extract(MODEL, memory_path / "store"), exit_code=BAD_INPUT,
            names=["HF_HUB_OFFLINE", NAME])
    assert hub.requests == []


def test_another_commit_in_the_cache_is_not_taken_for_this_one(hub, write_to_cache, extract_right,
                                                               ragged_job):
    other = hub.push(NAME, ragged_job.replacement / "model")
    write_to_cache(other)
    hub.push(NAME, ragged_job.original / "model")
    extract_right(MODEL)
    assert len([r for r in files_asked(hub) if r.path.endswith(".safetensors")]) == FILES


@pytest.mark.parametrize("kept", ["config.json", "*.json", "model-00001*"])
def test_a_cache_that_has_some_of_the_files_is_no_hindrance(kept, write_to_cache, extract_right):
    # Goal: whoever looked at a model's config or tokenizer has that much of it in the cache.
    snapshot = write_to_cache()
    wanted = set(snapshot.glob(kept)) | {snapshot / "config.json"}
    for path in set(snapshot.iterdir()) - wanted:
        path.unlink()
    extract_right(MODEL)


def test_a_link_of_the_cache_that_leads_nowhere_is_no_hindrance(write_to_cache, extract_right):
    # Method: the blob of a weight file was deleted, as tools that free space do.
    snapshot = write_to_cache()
    min(snapshot.glob(WEIGHTS)).resolve().unlink()
    extract_right(MODEL)


def test_a_blob_of_the_wrong_length_is_never_used_in_silence(write_to_cache, ragged_job, librarian,
                                                             ragged_digest, memory_path):
    snapshot = write_to_cache()
    blob = min(snapshot.glob(WEIGHTS)).resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    done = librarian(*ragged_job.extract(MODEL, memory_path / "store"), exit_code=None)
    assert done.returncode in (0, BAD_INPUT)
    if done.returncode == 0:
        assert last_run(memory_path / "store")["store_digest"] == ragged_digest
