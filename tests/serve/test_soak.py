"""Short forms of `make soak`: all ten figures on a tiny model, and each of the judges sees what it is there for."""

import contextlib
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from benchmarks.soak import answers, crowd, ending, hours, sameness, slow, strangers
from benchmarks.soak.served import serving, write_model
from tests.serve.asking import fault_of

QUEUE = 16


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two of the same model."""
    model = write_model(tmp_path_factory.mktemp("soak"))
    options = "--read_secs=2", "--grace_secs=4"
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        yield list(pool.map(lambda _: stack.enter_context(serving(model, *options, queue=QUEUE)), range(2)))


@pytest.fixture(scope="module")
def server(servers):
    return servers[0]


def test_1_malformed_requests(server):
    figure = strangers.malformed(server, 45)
    assert figure.passed, figure


def test_2_without_a_key(server):
    figure = strangers.without_a_key(server)
    assert figure.passed, figure


def test_3_an_endless_body(server):
    figure = strangers.endless_body(server, 1 << 30)
    assert figure.passed, figure


def test_4_slow_clients(server):
    """Of so few requests the p99 says nothing."""
    figure = slow.slow_clients(server, 20, num_rounds=1, secs=0.5)
    assert figure.measured.startswith("0 of 20 left open"), figure


def test_5_more_than_there_is_room_for(server):
    figure = crowd.too_many(server, 30, num_tokens=800)
    assert figure.passed, figure


def test_6_clients_that_leave(server):
    figure = crowd.leavers(server, 10)
    assert figure.passed, figure


def test_8_mixed_traffic(server):
    """In so short a time the slope says nothing."""
    figure = hours.soak(server, 0.06)
    assert "; 0 errors" in figure.measured and "leaver" in figure.measured, figure


def test_9_many_at_once(server):
    figure = sameness.together(server, 20)
    assert figure.passed, figure


def test_10_two_tenants(servers):
    """The other server stands in for one of each tenant's own."""
    figure = sameness.tenants(servers[0], lambda: contextlib.nullcontext(servers[1]), 6)
    assert figure.passed, figure


def test_7_sigterm_with_streams(servers):
    figure = ending.sigterm(servers[1])
    done, ended = map(int, re.search(r"(\d+) done, (\d+) error", figure.measured).groups())
    assert figure.passed and done + ended == 16 and done and ended, figure


# Negative controls


def shaped(status: int, told) -> httpx.Response:
    return httpx.Response(status, json=told)


def test_1_sees_a_fault():
    error = {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None}}
    assert fault_of(shaped(400, error)) is None and fault_of(shaped(200, {"choices": []})) is None
    assert fault_of(shaped(500, error)) and fault_of(shaped(400, {"detail": "no"})) and fault_of(shaped(400, {"error": "no"}))
    assert fault_of(shaped(400, [error])) and fault_of(httpx.Response(404, text="not found")) and fault_of(shaped(200, error))
    stream = {"content-type": "text/event-stream"}
    assert fault_of(httpx.Response(200, text="data: {}\n\ndata: [DONE]\n\n", headers=stream)) is None
    assert fault_of(httpx.Response(200, text='data: {"error": {}}\n\n', headers=stream))


def test_4_sees_a_connection_left_open_and_a_slow_server():
    assert slow.judge_slow([0.01] * 99, [0.015] * 99, [10.0, 10.0], 2).passed
    assert not slow.judge_slow([0.01] * 99, [0.015] * 99, [10.0], 2).passed
    assert not slow.judge_slow([0.01] * 99, [0.015] * 99, [10.0, 16.0], 2).passed
    assert not slow.judge_slow([0.01] * 99, [0.015] * 97 + [0.021] * 2, [10.0, 10.0], 2).passed


def test_5_sees_one_too_many_and_one_lost():
    held, extra = [(200, 9)] * 4, [(429, 0)] * 3
    assert crowd.judge_crowd(held, extra, 9).passed
    for wrong in ((200, 9), (503, 0)):
        assert not crowd.judge_crowd(held, [*extra[1:], wrong], 9).passed
    for wrong in ((429, 0), (200, 8)):
        assert not crowd.judge_crowd([*held[1:], wrong], extra, 9).passed


def test_7_sees_a_stream_that_is_cut_and_a_process_that_stays():
    good = {"ends": ["done", "error"], "code": 0, "secs": 29.0, "orphans": [], "log": "mtnlg: ending: 16 texts are being written\n"}
    assert ending.judge_ends(**good).passed
    for wrong in (
        {"ends": ["done", "cut"]},
        {"ends": ["error"]},
        {"code": None},
        {"secs": 31.0},
        {"orphans": [7]},
        {"log": good["log"] + "a fault"},
    ):
        assert not ending.judge_ends(**(good | wrong)).passed


def test_7_sees_a_live_process(server):
    assert ending.orphans_of(server.process.pid) == [server.process.pid]


def test_8_sees_a_slope_and_an_error():
    def seen(mb_a_minute: float):
        """With a steep beginning, which is the warm-up."""
        return [(second / 60, 400 + min(second, 60) + mb_a_minute * second / 60) for second in range(600)]

    counts = Counter(chat=3)
    assert hours.judge_soak(10, seen(0.9), counts, []).passed
    assert not hours.judge_soak(10, seen(1.1), counts, []).passed
    assert not hours.judge_soak(10, seen(0.9), counts, ["a fault"]).passed


@pytest.fixture
def told(server):
    """Of three requests."""
    asked = ({"prompt": "the dog", "max_tokens": 5, "logprobs": 1, "seed": seed} for seed in range(3))
    return [answers.ask(server, "/v1/completions", one)[0] for one in asked]


def test_9_sees_another_token_and_another_log_probability(told):
    assert sameness.judge_together(told, told).passed
    for name in ("tokens", "token_logprobs"):
        choice = told[1][0]
        wrong = choice | {name: [*choice[name][:-1], "x" if name == "tokens" else choice[name][-1] * (1 + 1e-15)]}
        assert not sameness.judge_together(told, [told[0], [wrong], told[2]]).passed
    assert not sameness.judge_together([told[0]] * 3, [told[0]] * 3).passed  # one text for all: nothing is shown


def test_10_sees_a_secret_another_answer_and_a_cache_that_is_not_used(told):
    secrets = ("0123", "abcd")
    alone = [[(told[0], b"mine is 0123")], [(told[1], b"mine is abcd")]]
    assert sameness.judge_tenants(secrets, alone, alone, 128).passed
    leak = [[(told[0], b"mine is 0123 and abcd")], alone[1]]
    assert not sameness.judge_tenants(secrets, alone, leak, 128).passed
    assert not sameness.judge_tenants(secrets, alone, [[(told[2], b"mine is 0123")], alone[1]], 128).passed
    assert not sameness.judge_tenants(secrets, alone, alone, 0).passed
    blind = [[(told[0], b"nothing")], alone[1]]
    assert not sameness.judge_tenants(secrets, blind, blind, 128).passed
