"""The remote backend against a real server on loopback: events, retries, limits, what is sent."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from encoders.errors import (
    BadAnswer,
    ContextOverflow,
    InvalidOption,
    NotFound,
    Refused,
    TimedOut,
    Unreachable,
)
from multimodal.backends import (
    Finished,
    GenerateOptions,
    Logprob,
    Token,
    collect,
    load_backend,
)
from multimodal.messages import Image, Message, Text, user
from multimodal.openai_server import Patience
from multimodal.remote import RemoteBackend
from tests.scripted_server import (
    DONE,
    ScriptedServer,
    event,
    fails,
    piece,
    says,
    sends,
    stream,
)
from tests.served import free_port
from tests.waiting import PATIENCE_S, wait_until

SECRET = "Zebra has a nodule"
YES_NO = GenerateOptions(choices=("yes", "no"))
QUICK = Patience(backoff_s=0.01)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSREAD_API_KEY", raising=False)


def ask(server: ScriptedServer, *parts: Any, options: GenerateOptions | None = None) -> Finished:
    backend = RemoteBackend(server.url, patience=QUICK)
    return collect(backend.generate([user(*(parts or (SECRET,)))], options))


# --- events ------------------------------------------------------------------------------------


def test_an_answer_comes_in_pieces_with_its_usage(model_server: ScriptedServer) -> None:
    model_server.script = [says("a right| nodule| 14 mm")]
    events = list(RemoteBackend(model_server.url).generate([user("What?")]))
    assert events[:-1] == [Token("a right"), Token(" nodule"), Token(" 14 mm")]
    done = events[-1]
    assert isinstance(done, Finished)
    assert (done.text, done.reason) == ("a right nodule 14 mm", "stop")
    assert (done.usage.prompt_tokens, done.usage.new_tokens, done.usage.encoded_media) == (11, 7, 0)
    assert 0 <= done.usage.timings_s["first_token"] <= done.usage.timings_s["decode"]


def test_a_piece_is_given_before_the_next_is_made(model_server: ScriptedServer) -> None:
    heard = threading.Event()

    def play(handler: Any, _: Any) -> None:
        stream(handler, piece("one"))
        assert heard.wait(PATIENCE_S)
        handler.wfile.write(piece(" two", finish_reason="length") + DONE)

    model_server.script = [play]
    events = RemoteBackend(model_server.url).generate([user("Count.")])
    assert next(events) == Token("one")
    heard.set()
    last = collect(events)
    assert (last.text, last.reason) == ("one two", "length")
    assert (last.usage.prompt_tokens, last.usage.new_tokens) == (0, 0)  # the server told none


def test_options_and_the_conversation_are_sent(model_server: ScriptedServer) -> None:
    options = GenerateOptions(max_new_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=("x",))
    turns = [Message("system", (Text("Be brief."),)), user("Hello"),
             Message("assistant", (Text("Hi"),)), user("Who?", "Why?")]  # fmt: skip
    collect(RemoteBackend(model_server.url).generate(turns, options))
    (body,) = model_server.seen
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Who?\nWhy?"},
    ]  # fmt: skip
    wanted = {"model": "tiny", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3,
              "stop": ["x"], "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    assert {k: v for k, v in body.items() if k != "messages"} == wanted


def test_what_the_protocol_has_is_sent_and_the_rest_refused_by_name(
    model_server: ScriptedServer,
) -> None:
    schema = '{"type": "object"}'
    options = GenerateOptions(
        presence_penalty=0.5, frequency_penalty=-0.5, json_schema=schema, logprobs=2
    )
    model_server.script = [says("yes", top={"yes": -0.1, "no": -2.0})]
    events = list(RemoteBackend(model_server.url).generate([user("Agrees?")], options))
    (body,) = model_server.seen
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0.5, -0.5)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert events[0] == Token("yes", (Logprob("", 0.0, None, (("yes", -0.1), ("no", -2.0))),))
    for name, value in {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2}.items():
        with pytest.raises(InvalidOption, match=name):
            ask(model_server, options=GenerateOptions(**{name: value}))


def test_an_answer_past_its_deadline_ends_as_timeout(model_server: ScriptedServer) -> None:
    model_server.script = [sends(piece("one"), piece(" two"), piece(" three"), DONE)]
    done = ask(model_server, options=GenerateOptions(deadline_s=1e-6))
    assert (done.text, done.reason) == ("one", "timeout")


def test_a_prompt_is_guessed_from_its_letters_and_pictures(model_server: ScriptedServer) -> None:
    from PIL import Image as PilImage

    told = RemoteBackend(model_server.url).estimate(
        [user("x" * 400, Image(PilImage.new("L", (9, 9))))], GenerateOptions(max_new_tokens=7)
    )
    assert (told.prompt_tokens, told.new_tokens) == (100 + 256, 7)
    assert [s.pixels for s in told.media] == [81]


def test_keep_alives_other_fields_and_a_missing_done_are_borne(
    model_server: ScriptedServer,
) -> None:
    end = piece(" you", finish_reason="stop").replace(b"\n\n", b"\r\n\r\n")
    model_server.script = [sends(b": ping\n\n", b"event: message\ndata:", piece("see")[5:], end)]
    assert ask(model_server).text == "see you"


def test_closing_the_iterator_hangs_up(model_server: ScriptedServer) -> None:
    noticed = threading.Event()

    def play(handler: Any, _: Any) -> None:
        stream(handler, piece("on"))
        try:
            while True:
                time.sleep(0.01)
                stream_on(handler)
        except OSError:
            noticed.set()

    def stream_on(handler: Any) -> None:
        handler.wfile.write(piece(" and on"))

    model_server.script = [play]
    events = RemoteBackend(model_server.url).generate([user("Talk.")])
    assert next(events) == Token("on")
    events.close()  # type: ignore[attr-defined]
    assert noticed.wait(PATIENCE_S)


def test_many_who_ask_at_once_get_their_own_answers(model_server: ScriptedServer) -> None:
    model_server.script = [lambda h, body: says(body["messages"][0]["content"])(h, body)]
    backend = RemoteBackend(model_server.url)
    with ThreadPoolExecutor(8) as pool:
        asked = [f"number {k}" for k in range(16)]
        answers = list(pool.map(lambda q: collect(backend.generate([user(q)])).text, asked))
    assert answers == asked


# --- choices -----------------------------------------------------------------------------------


def test_probabilities_of_choices_are_those_of_the_first_token(
    model_server: ScriptedServer,
) -> None:
    top = {"Yes": math.log(0.5), " no": math.log(0.2), "y": math.log(0.1), "The": math.log(0.2)}
    model_server.script = [says("Yes.", top=top)]
    done = ask(model_server, "A nodule?", options=YES_NO)
    assert done.text == "yes"
    assert done.choices == pytest.approx({"yes": 0.6 / 0.8, "no": 0.2 / 0.8})
    (body,) = model_server.seen
    assert (body["logprobs"], body["top_logprobs"], body["temperature"]) == (True, 20, 0.0)
    assert model_server.prompts[0].endswith("one of these and nothing else: yes, no")


@pytest.mark.parametrize(
    "top",
    [None, {"The": -0.1, "yes": -4.0}, {"": -0.01}, {"yes": math.nan, "no": math.nan}],
    ids=["no log-probabilities", "another word first", "an empty token", "NaN"],
)
def test_no_probability_is_made_up(model_server: ScriptedServer, top: Any) -> None:
    model_server.script = [says("'No', there is none", top=top)]
    done = ask(model_server, options=YES_NO)
    assert (done.text, done.choices) == ("no", {})


def test_a_server_without_log_probabilities_is_asked_without(model_server: ScriptedServer) -> None:
    model_server.script = [fails(400), says("no")]
    backend = RemoteBackend(model_server.url)
    for _ in range(2):
        assert collect(backend.generate([user("A nodule?")], YES_NO)).text == "no"
    assert ["logprobs" in body for body in model_server.seen] == [True, False, False]


def test_the_longest_fitting_choice_counts(model_server: ScriptedServer) -> None:
    model_server.script = [says("no findings")]
    options = GenerateOptions(choices=("no", "no findings"))
    assert ask(model_server, options=options).text == "no findings"


def test_an_answer_outside_the_choices_is_told(model_server: ScriptedServer) -> None:
    model_server.script = [says(SECRET)]
    with pytest.raises(BadAnswer, match="answers none of yes, no") as caught:
        ask(model_server, options=YES_NO)
    assert SECRET not in str(caught.value)


# --- retries and limits --------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds slept between requests, without sleeping."""
    slept: list[float] = []
    monkeypatch.setattr("multimodal.openai_server.sleep", slept.append)
    return slept


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_in_seconds_is_obeyed(
    model_server: ScriptedServer, waits: list[float], code: int
) -> None:
    model_server.script = [fails(code, Retry_After="3"), says("well")]
    assert ask(model_server).text == "well"
    assert waits == [3.0]


def test_retry_after_as_a_date_is_obeyed(model_server: ScriptedServer, waits: list[float]) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)
    model_server.script = [fails(429, Retry_After=soon), says("well")]
    assert ask(model_server).text == "well"
    assert waits == [pytest.approx(8, abs=2)]


def test_a_long_wait_is_told_and_not_sat_out(
    model_server: ScriptedServer, waits: list[float]
) -> None:
    model_server.script = [fails(429, Retry_After="900")]
    with pytest.raises(Unreachable, match=r"busy \(429\) and asks to wait 900 s"):
        ask(model_server)
    assert (model_server.played, waits) == (1, [])


def test_retries_are_bounded_and_wait_longer(
    model_server: ScriptedServer, waits: list[float]
) -> None:
    model_server.script = [fails(503, Retry_After="soon")]
    with pytest.raises(Unreachable, match=r"busy \(503\)"):
        ask(model_server)
    assert (model_server.played, waits) == (3, [0.01, 0.02])


@pytest.mark.parametrize("code", [400, 401, 404, 500])
def test_other_failures_are_not_repeated(model_server: ScriptedServer, code: int) -> None:
    model_server.script = [fails(code, SECRET.encode())]
    with pytest.raises((Refused, NotFound, Unreachable), match=str(code)) as caught:
        ask(model_server)
    assert model_server.played == 1
    assert SECRET not in str(caught.value)


def test_a_connection_lost_before_the_first_token_is_tried_again(
    model_server: ScriptedServer,
) -> None:
    model_server.script = [sends(piece("")), says("well")]
    assert ask(model_server).text == "well"
    assert model_server.played == 2


def test_nothing_is_repeated_after_the_first_token(model_server: ScriptedServer) -> None:
    model_server.script = [sends(piece("half")), says("never")]
    events = RemoteBackend(model_server.url, patience=QUICK).generate([user(SECRET)])
    assert next(events) == Token("half")
    with pytest.raises(Unreachable, match="broke off in the middle") as caught:
        next(events)
    assert model_server.played == 1
    assert SECRET not in str(caught.value)


def test_a_silent_server_is_left(model_server: ScriptedServer) -> None:
    over = threading.Event()
    model_server.script = [lambda handler, _: over.wait(PATIENCE_S) and None]
    backend = RemoteBackend(model_server.url, patience=Patience(silent_s=1.0))
    with pytest.raises(TimedOut, match=r"silent for more than 1 s"):
        collect(backend.generate([user(SECRET)]))
    over.set()
    wait_until(lambda: model_server.played == 1, "it has been asked")


@pytest.mark.parametrize(
    ("beat", "limits", "what"),
    [(b": ping\n\n", {"first_token_s": 0.2}, "the first token"),
     (piece("and "), {"total_s": 0.2}, "its answer")],
)  # fmt: skip
def test_keep_alives_and_trickles_do_not_outlast_the_limits(
    model_server: ScriptedServer, beat: bytes, limits: dict[str, float], what: str
) -> None:
    def play(handler: Any, _: Any) -> None:
        stream(handler)
        while True:
            handler.wfile.write(beat)
            time.sleep(0.02)

    model_server.script = [play]
    backend = RemoteBackend(model_server.url, patience=Patience(**limits))
    with pytest.raises(TimedOut, match=rf"longer than 0\.2 s for {what}"):
        collect(backend.generate([user(SECRET)]))


def test_nobody_there_is_unreachable() -> None:
    port = free_port()
    with pytest.raises(Unreachable, match=f"127.0.0.1:{port} cannot be reached"):
        RemoteBackend(f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize(
    "packets",
    [
        (b"data: {nonsense Zebra\n\n",), (b"Zebra has a nodule\n",), (b"data: 7\n\n",), (b"data: []\n\n",),
        (event({"choices": {"Zebra": 1}}),), (event({"choices": [{"delta": None}]}),),
        (event({"choices": [{"delta": {"content": ["Zebra"]}}]}),), (b"data: " + b"[" * 100_000 + b"\n\n",),
        (b"data: \xff\xfe\n\n",), (b"x" * (2**20 + 2),), (event({"error": {"message": SECRET}}),),
        (piece("a"), piece(None, finish_reason="content_filter"), DONE), (DONE,),
        (piece("a", logprobs={"content": [7]}), piece(None, finish_reason="stop"), DONE),
    ],
)  # fmt: skip
def test_garbage_is_a_bad_answer_and_not_quoted(
    model_server: ScriptedServer, packets: tuple[bytes, ...]
) -> None:
    model_server.script = [sends(*packets)]
    with pytest.raises(BadAnswer, match=r"127\.0\.0\.1") as caught:
        ask(model_server)
    assert "Zebra" not in str(caught.value)
    assert model_server.played == 1


def test_a_prompt_too_long_is_told_as_such(model_server: ScriptedServer) -> None:
    said = b'{"error": {"message": "maximum context length is 4096 tokens", "code": 400}}'
    model_server.script = [fails(400, said)]
    with pytest.raises(ContextOverflow, match="shorten the text"):
        ask(model_server)


def test_a_redirect_is_not_followed(model_server: ScriptedServer) -> None:
    model_server.script = [fails(307, Location="http://elsewhere.invalid/v1/chat/completions")]
    with pytest.raises(Refused, match="redirects elsewhere"):
        ask(model_server)


# --- whom and which ------------------------------------------------------------------------------


def test_the_key_goes_in_the_header_alone(
    model_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CROSSREAD_API_KEY", "sk-quagga\n")
    caplog.set_level("DEBUG")
    model_server.script = [says("yes"), fails(401)]
    ask(model_server)
    with pytest.raises(Refused, match=r"refuses access \(401\); check CROSSREAD_API_KEY") as caught:
        ask(model_server)
    assert {h["Authorization"] for h in model_server.headers} == {"Bearer sk-quagga"}
    assert "quagga" not in f"{model_server.seen} {caught.value} {caplog.text}"
    assert SECRET not in caplog.text


def test_without_a_key_none_is_sent(model_server: ScriptedServer) -> None:
    ask(model_server)
    assert {h["Authorization"] for h in model_server.headers} == {None}


def test_a_key_that_no_header_takes_is_refused(
    model_server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREAD_API_KEY", "ключ")
    with pytest.raises(InvalidOption, match="CROSSREAD_API_KEY holds characters"):
        RemoteBackend(model_server.url)


def test_one_of_several_models_is_chosen_by_name(model_server: ScriptedServer) -> None:
    model_server.models = [{"id": "a/large", "max_model_len": 4096}, {"id": "b"}]
    made = RemoteBackend(f"{model_server.url}#a/large").capabilities()
    assert (made.name, made.max_len, made.findings) == ("a/large", 4096, ())
    with pytest.raises(NotFound, match=r"are: a/large, b; one must be chosen: write #NAME"):
        RemoteBackend(model_server.url)
    with pytest.raises(NotFound, match=r"are: a/large, b; 'c' is not among them"):
        RemoteBackend(f"{model_server.url}#c")


@pytest.mark.parametrize("models", [[{}], ["Zebra"], [{"id": "a", "max_model_len": "long"}], None])
def test_a_listing_that_is_none_is_a_bad_answer(model_server: ScriptedServer, models: Any) -> None:
    model_server.models = models
    with pytest.raises(BadAnswer, match="not the OpenAI protocol"):
        RemoteBackend(model_server.url)


def test_a_server_of_no_models_is_told(model_server: ScriptedServer) -> None:
    model_server.models = []
    with pytest.raises(NotFound, match="are: none"):
        RemoteBackend(model_server.url)


@pytest.mark.parametrize(
    "url",
    ["http:///v1", "https://", "http://host:port/v1", "http://[::1/v1", "https://host/v1?a=b"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidOption, match="must look like https://host:port/v1"):
        load_backend(url)


def test_a_password_in_the_address_is_refused_unquoted() -> None:
    with pytest.raises(InvalidOption, match="set CROSSREAD_API_KEY instead") as caught:
        load_backend("https://me:quagga@host/v1")
    assert "quagga" not in str(caught.value)


def test_an_address_makes_a_remote_backend_and_takes_no_loading_options(
    model_server: ScriptedServer,
) -> None:
    assert isinstance(load_backend(model_server.url + "/"), RemoteBackend)
    with pytest.raises(InvalidOption, match="leave out device, dtype, sparsity"):
        load_backend(model_server.url, sparsity=0.5)
