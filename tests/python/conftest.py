"""Fixtures: the built program, and HTTP servers that end with the test."""

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("LIBRARIAN_BUILD_DIR", REPOSITORY / "build/release"))
sys.path[:0] = [str(REPOSITORY / "tests" / "python"), str(REPOSITORY / "examples"),
                str(BUILD / "python")]

from fault_server import FaultServer  # noqa: E402  (needs the path above)

COMMAND_SECONDS_MAX = 120
MEMORY_PATH_BYTES_MIN = 32 << 20
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@pytest.fixture(scope="session")
def librarian_binary():
    """Path of the program: $LIBRARIAN_BIN, else the release build."""
    asked = os.environ.get("LIBRARIAN_BIN")
    binary = pathlib.Path(asked) if asked else REPOSITORY / "build/release/cli/librarian"
    if not binary.is_file():
        if asked:
            pytest.fail(f"LIBRARIAN_BIN={asked} is not a file")
        pytest.skip(f"{binary} is not built")
    return binary.resolve()


def runner(binary):
    """What the fixture `librarian` is, for any program."""

    def run(*arguments, exit_code=0, timeout=COMMAND_SECONDS_MAX, **options):
        command = [str(binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
        if exit_code is not None and done.returncode != exit_code:
            pytest.fail(f"exit code {done.returncode}, expected {exit_code}: {' '.join(command)}\n"
                        f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    return run


@pytest.fixture(scope="session")
def librarian(librarian_binary):
    """librarian("inspect", folder, ...) -> CompletedProcess with text output.

    By default an exit code other than 0 fails the test with what the program said;
    `exit_code=None` accepts any, another number expects that one.
    """
    return runner(librarian_binary)


@pytest.fixture(scope="session")
def emulated_gpu_binary(librarian_binary):
    """Path of the program whose --device cuda:N needs no GPU, from the same build."""
    binary = librarian_binary.parents[1] / "tests/support/librarian_on_emulated_gpu"
    if not binary.is_file():
        pytest.skip(f"{binary} is not built")
    return binary


@pytest.fixture(scope="session")
def on_gpu(emulated_gpu_binary):
    """As `librarian`, where --device cuda:N is an emulated GPU."""
    return runner(emulated_gpu_binary)


@pytest.fixture
def refused(librarian):
    """refused("extract", ..., exit_code=3, names=["config.json"]) -> the line on stderr.

    The promise that every refusal keeps: the right exit code, exactly one printable line that
    says what and where, and nothing in the output that looks finished. With `may_warn`, behind
    lines that warn, which are not looked at.
    """

    def run(*arguments, exit_code, names=(), may_warn=False, **options):
        done = librarian(*arguments, exit_code=exit_code, **options)
        said = done.stderr
        if may_warn:
            said = re.sub(r"\A(librarian: warning: [^\n]+\n)*", "", said)
        assert re.fullmatch(r"librarian: [^\n]+\n", said), done.stderr
        assert said[:-1].isprintable(), ascii(said)
        for name in names:
            assert str(name) in said, f"{name} is not in: {said}"
        arguments = list(map(str, arguments))
        if "--out" in arguments:
            store = pathlib.Path(arguments[arguments.index("--out") + 1])
            assert not list(store.glob("part-*/zarr.json")), "a part looks complete"
            if store.is_dir() and (store / "job.json").exists():
                verdict = librarian("verify", store, exit_code=7)
                assert "0 of " in verdict.stdout, verdict.stdout
        return said

    return run


@pytest.fixture
def serve():
    """serve(directory, faults=[...], bytes_per_second=...) -> a running FaultServer."""
    servers = []

    def start(directory, **options):
        servers.append(FaultServer(directory, **options).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority that no machine trusts."""
    from nginx import Authority
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusting(librarian_binary, authority):
    """As `librarian`, on a machine that trusts our authority: returns whatever its exit code is.

    Our authority lies over the machine's bundle in a mount namespace of its own.
    """
    command = ["unshare", "-rm", "sh", "-euc", 'mount --bind "$1" "$2"; shift 2; exec "$@"', "sh",
               str(authority.bundle), SYSTEM_BUNDLE]
    if not shutil.which("unshare") or not os.path.exists(SYSTEM_BUNDLE) or subprocess.run(
            [*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces or no bundle of authorities here")

    def run(*arguments):
        return subprocess.run([*command, str(librarian_binary), *map(str, arguments)],
                              capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX)

    return run


@pytest.fixture
def memory_path(tmp_path):
    """As tmp_path, in memory where there is room: many small jobs would wait for fsync only."""
    memory = pathlib.Path("/dev/shm")
    try:
        if shutil.disk_usage(memory).free < MEMORY_PATH_BYTES_MIN:
            raise OSError
        folder = pathlib.Path(tempfile.mkdtemp(prefix="librarian-tests-", dir=memory))
    except OSError:
        yield tmp_path
        return
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def ragged_job(tmp_path_factory):
    """A small RaggedJob; its model files must not be changed."""
    from support import RaggedJob  # Here, because it needs packages that not every test needs.
    return RaggedJob(tmp_path_factory.mktemp("ragged_job"))


@pytest.fixture(scope="session")
def ragged_digest(ragged_job, librarian, tmp_path_factory):
    """Digest of the store that the ragged job's local files give."""
    from support import last_run
    store = tmp_path_factory.mktemp("ragged_digest") / "store"
    librarian(*ragged_job.extract(ragged_job.original / "model", store))
    return last_run(store)["store_digest"]


@pytest.fixture
def extract_right(ragged_job, ragged_digest, librarian, memory_path):
    """extract_right(place, options..., env={...}): run or resume the ragged job from a place.

    Its store, memory_path/store, must be what the local files give. `env` is added to ours.
    """
    from support import last_run

    def run(place, *options, env=None):
        store = memory_path / "store"
        librarian(*ragged_job.extract(place, store, *options), env=os.environ | (env or {}))
        assert last_run(store)["store_digest"] == ragged_digest

    return run


@pytest.fixture
def start_program():
    """start_program(binary, "extract", ...) -> a running Program with --json.

    What still runs at the end of the test is killed.
    """
    from support import Program
    programs = []

    def run(binary, *arguments):
        programs.append(Program([binary, *arguments, "--json"]))
        return programs[-1]

    yield run
    for program in programs:
        program.end(signal.SIGKILL)


@pytest.fixture
def start(librarian_binary, start_program):
    """start("extract", ...) -> a running librarian, as start_program()."""
    return functools.partial(start_program, librarian_binary)


@pytest.fixture
def hub(ragged_job, monkeypatch, tmp_path):
    """A running ScriptedHub that has the ragged job's model as org/tiny-llama.

    The program finds it, and no token or cache of whoever runs the tests.
    """
    from scripted_hub import ScriptedHub
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "XDG_CACHE"))]:
        monkeypatch.delenv(name)
    with ScriptedHub() as hub:
        hub.push("org/tiny-llama", ragged_job.original / "model")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "no_hub_home"))
        yield hub
