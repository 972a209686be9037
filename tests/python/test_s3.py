"""Weights from S3 give the bytes of local files, and what cannot be read is explained.

Method: moto's S3 server with signature checking on, and jobs of the real program. Its environment
is built from nothing, so that credentials of the machine's user play no part.
"""

import json
import os

import pytest

from s3_server import READ_EVERYTHING, REGION, S3Server
from support import differing_files, part_attributes
from test_same_bytes import differing_but_for_verified

BAD_INPUT = 3


@pytest.fixture(scope="module")
def server():
    with S3Server() as running:
        yield running


@pytest.fixture
def store_of_models(server, ragged_job):
    """The server with the job's model in s3://models/model/, private, and signatures checked."""
    server.reset()
    server.upload(ragged_job.original / "model", "models", "model/")
    server.client("s3").create_bucket(
        Bucket="empty-bucket", CreateBucketConfiguration={"LocationConstraint": REGION})
    return server


@pytest.fixture(scope="module")
def reference(ragged_job, librarian, tmp_path_factory):
    store = tmp_path_factory.mktemp("reference") / "store"
    librarian(*ragged_job.extract(ragged_job.original / "model", store))
    return store


@pytest.fixture
def environment(server, tmp_path):
    """environment(variables...) -> what the program sees."""

    def build(*variables, **more):
        built = {"PATH": os.environ["PATH"], "HOME": str(tmp_path),
                 "AWS_ENDPOINT_URL": server.url, "AWS_REGION": REGION}
        for part in (*variables, more):
            built.update(part)
        return built

    return build


def assert_same(reference, store):
    assert differing_but_for_verified(reference, store) == []
    assert part_attributes(store, 0)["verified"] == "stream"
    assert differing_files(reference, store) != []  # `verified` alone.


# Who may read gets the bytes.


def test_signed_requests_give_the_bytes_of_local_files(store_of_models, reference, ragged_job,
                                                       librarian, environment, memory_path):
    variables = environment(store_of_models.user("reader"))
    store_of_models.check_signatures(True)
    librarian(*ragged_job.extract("s3://models/model/", memory_path / "store"), env=variables)
    assert_same(reference, memory_path / "store")


def test_temporary_credentials(store_of_models, reference, ragged_job, librarian, environment,
                               memory_path):
    variables = environment(store_of_models.session("role"))
    store_of_models.check_signatures(True)
    librarian(*ragged_job.extract("s3://models/model", memory_path / "store"), env=variables)
    assert_same(reference, memory_path / "store")


def test_a_profile_of_the_users_files(store_of_models, reference, ragged_job, librarian,
                                      environment, tmp_path, memory_path):
    # Goal: keys, region and endpoint from ~/.aws, nothing in the environment but the name.
    keys = store_of_models.user("reader")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n"
        f"[work]\naws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {keys['AWS_SECRET_ACCESS_KEY']}\n")
    (tmp_path / ".aws/config").write_text(
        f"[profile work]\nregion = {REGION}\nservices = near\n"
        f"[services near]\ns3 =\n  endpoint_url = {store_of_models.url}\n")
    variables = environment(AWS_PROFILE="work")
    del variables["AWS_ENDPOINT_URL"], variables["AWS_REGION"]
    store_of_models.check_signatures(True)
    librarian(*ragged_job.extract("s3://models/model/", memory_path / "store"), env=variables)
    assert_same(reference, memory_path / "store")


def test_a_public_bucket_needs_no_credentials(store_of_models, reference, ragged_job, librarian,
                                              environment, memory_path):
    store_of_models.upload(ragged_job.original / "model", "models", "public/", acl="public-read")
    librarian(*ragged_job.extract("s3://models/public/", memory_path / "store"), env=environment())
    assert_same(reference, memory_path / "store")


@pytest.mark.parametrize("prefix", ["a b/c+d=e/", "übung/模型/", "~x!*'()&$@:,;/", "a%20b%2F/",
                                    "why?/#1/[x]/", "a//b/"])
def test_odd_keys(prefix, store_of_models, reference, ragged_job, librarian, environment,
                  memory_path):
    # Goal: a key is asked for and signed as its very bytes, encoded once.
    store_of_models.upload(ragged_job.original / "model", "models", prefix)
    variables = environment(store_of_models.user("reader"))
    store_of_models.check_signatures(True)
    librarian(*ragged_job.extract("s3://models/" + prefix, memory_path / "store"), env=variables)
    assert_same(reference, memory_path / "store")


# Who may not, or asks for what is not there, is told so in one sentence without a secret.


def refusal(refused, ragged_job, place, store, variables, names):
    line = refused(*ragged_job.extract(place, store), env=variables, exit_code=BAD_INPUT,
                   names=[place, *names])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert name not in variables or variables[name] not in line
    assert not store.exists()
    return line


@pytest.mark.parametrize("change, names", [
    ({"AWS_SECRET_ACCESS_KEY": "wrong+secret"}, ["SignatureDoesNotMatch", "secret access key"]),
    ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, ["InvalidAccessKeyId", "access key"]),
    ({"AWS_SESSION_TOKEN": "nobodys+token"}, ["InvalidToken", "session token"]),
], ids=lambda value: "" if isinstance(value, list) else list(value)[0])
def test_wrong_credentials(change, names, store_of_models, ragged_job, refused, environment,
                           memory_path):
    variables = environment(store_of_models.user("reader"), change)
    store_of_models.check_signatures(True)
    refusal(refused, ragged_job, "s3://models/model/", memory_path / "store", variables,
            [*names, "environment"])


def test_a_user_without_permission(store_of_models, ragged_job, refused, environment, memory_path):
    variables = environment(store_of_models.user("stranger", policy=None))
    store_of_models.check_signatures(True)
    refusal(refused, ragged_job, "s3://models/model/", memory_path / "store", variables,
            ["403 AccessDenied", "environment"])


def test_a_private_bucket_without_credentials(store_of_models, ragged_job, refused, environment,
                                              memory_path):
    refusal(refused, ragged_job, "s3://models/model/", memory_path / "store", environment(),
            ["403", "without credentials"])


@pytest.mark.parametrize("place, names", [
    ("s3://models/no-model/", ["not a model directory"]),
    ("s3://empty-bucket/", ["not a model directory"]),
    ("s3://no-such-bucket/model/", ["NoSuchBucket", "check its name"]),
])
def test_what_is_not_there(place, names, store_of_models, ragged_job, refused, environment,
                           memory_path):
    variables = environment(store_of_models.user("reader", READ_EVERYTHING))
    store_of_models.check_signatures(True)
    refusal(refused, ragged_job, place, memory_path / "store", variables, names)


def test_half_a_key_and_an_unknown_profile(store_of_models, ragged_job, refused, environment,
                                           memory_path):
    keys = store_of_models.user("reader")
    half = environment(keys)
    del half["AWS_ACCESS_KEY_ID"]
    refusal(refused, ragged_job, "s3://models/model/", memory_path / "store", half,
            ["AWS_ACCESS_KEY_ID"])
    refusal(refused, ragged_job, "s3://models/model/", memory_path / "store",
            environment(AWS_PROFILE="nobody"), ["'nobody'"])


# What the store states of its objects.


def upload_with_checksums(server, folder, algorithm):
    s3 = server.client("s3")
    s3.create_bucket(Bucket="stated", CreateBucketConfiguration={"LocationConstraint": REGION})
    for path in folder.iterdir():
        s3.put_object(Bucket="stated", Key="model/" + path.name, Body=path.read_bytes(),
                      ChecksumAlgorithm=algorithm)


def test_checksums_that_the_store_states_are_checked(server, ragged_job, librarian, environment):
    server.reset()
    upload_with_checksums(server, ragged_job.original / "model", "SHA256")
    reader = server.user("reader")
    server.check_signatures(True)
    done = librarian("fetch", "s3://stated/model/", "--json", env=environment(reader))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    files = [event for event in events if event["event"] == "fetch_file"]
    assert len(files) == 3
    for file in files:
        assert (file["offers"], file["verified"]) == ("sha256", "yes")


def test_a_staged_part_whose_files_had_a_stated_sha256_says_so(server, ragged_job, librarian,
                                                               environment, reference, tmp_path):
    server.reset()
    upload_with_checksums(server, ragged_job.original / "model", "SHA256")
    reader, store = server.user("reader"), tmp_path / "store"
    server.check_signatures(True)
    librarian(*ragged_job.extract("s3://stated/model/", store), "--staging", "disk",
              env=environment(reader))
    assert differing_but_for_verified(reference, store) == []
    assert part_attributes(store, 0)["verified"] == "sha256"
