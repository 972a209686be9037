"""Signed links of the hub's CDN that end while the job runs.

Goal: the hub is asked for a new link, once for each that ended, and the job goes on as if nothing
had happened.
Method: a CDN that calls every link it gave out ended, from a chosen request on.
"""

import threading
import time

import pytest

from fault_server import ALWAYS, Fault, status
from range_server import text_response

MODEL = "hf://org/tiny-llama"
FILES = 3  # Weight files of the model.
WEIGHTS = "*.safetensors"


def expired(request, response, server):
    """All links that were given out end with this request."""
    server.hub.links.expire_all()
    return text_response(403, "<Error><Code>AccessDenied</Code></Error>", "text/xml")


@pytest.mark.parametrize("skip", [0, 1, FILES, FILES + 1, FILES + 7])
def test_links_that_expire_in_the_middle_are_resolved_again(skip, hub, extract_right):
    hub.cdn.faults.append(Fault(expired, skip=skip))
    extract_right(MODEL, "--connections", 1)
    assert hub.cdn.faults[0].struck == 1
    # One request at a time: each file's link is tried at most once after its end.
    assert FILES + 1 <= len(hub.resolves(WEIGHTS)) <= 2 * FILES
    refused = [request for request in hub.requests if request.status == 403]
    assert 1 <= len(refused) <= FILES


def test_links_that_expire_again_and_again_cost_a_question_each(hub, extract_right):
    faults = [Fault(expired, skip=FILES + 4 * i) for i in range(5)]
    hub.cdn.faults += faults
    extract_right(MODEL, "--connections", 1)
    assert [fault.struck for fault in faults] == [1] * 5
    ended = len([request for request in hub.requests if request.status == 403])
    assert len(hub.resolves(WEIGHTS)) <= FILES + ended


@pytest.mark.parametrize("code", [400, 401, 403, 410])
def test_whatever_a_cdn_says_of_an_ended_link_it_is_resolved_again(code, hub, extract_right):
    hub.cdn.faults.append(Fault(status(code), skip=FILES + 2))
    extract_right(MODEL, "--connections", 1)
    assert hub.cdn.faults[0].struck == 1


class LateAnswer:
    """One file's link ends while an answer from there is still to come.

    The first request for weights is answered when the hub was asked for a new link; that answer of
    the hub waits for it. The next request for the same file is refused.
    """

    SECONDS_MAX = 10

    def __init__(self):
        self._path = None
        self._lock = threading.Lock()
        self._asked_again, self._answered = threading.Event(), threading.Event()
        self.refused = False

    def from_cdn(self, request, response, server):
        with self._lock:
            first, self._path = self._path is None, self._path or request.path
            refuse = not first and request.path == self._path and not self.refused
            self.refused |= refuse
        if refuse:
            return text_response(403, "<Error/>", "text/xml")
        if first:
            self._asked_again.wait(self.SECONDS_MAX)
            self._answered.set()
        return response

    def from_hub(self, request, response, server):
        self._asked_again.set()
        self._answered.wait(self.SECONDS_MAX)
        time.sleep(0.3)  # Else the client may see both answers at once, and nothing is shown.
        return response


def test_an_answer_that_comes_when_its_link_has_ended_is_good(hub, extract_right):
    late = LateAnswer()
    hub.cdn.faults.append(Fault(late.from_cdn, skip=FILES, times=ALWAYS))
    hub.api.faults.append(Fault(late.from_hub, path="*/resolve/" + WEIGHTS, skip=FILES))
    extract_right(MODEL, "--connections", 8)
    assert late.refused


def test_links_of_a_few_seconds_are_enough(hub, extract_right):
    hub.links.seconds = 5
    extract_right(MODEL)
