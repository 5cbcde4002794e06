"""Chat over the network: the official client unmodified, and every parameter honoured or refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import PIL.Image
import pytest

from multimodal.backends import Finished, Logprob, Token, Usage
from multimodal.messages import Audio, Image, Study, Text, Video
from tests.makers import FakeBackend
from tests.pipelines.server.running import Gated, Running, serving


class Keeping(FakeBackend):
    """Keeps what it is asked: the kinds of parts, and the options."""

    def __init__(self) -> None:
        super().__init__(answers={"hello": "good day to you"})
        self.messages: list[Any] = []
        self.options: list[Any] = []
        self.slices: list[int] = []

    def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
        self.messages.append(messages)
        self.options.append(options)
        for part in (p for m in messages for p in m.parts if isinstance(p, Study)):
            from encoders.dicom import scan

            self.slices.append(scan(part.study).default().info.num_slices)
        return super().generate(messages, options)


@pytest.fixture
def backend() -> Keeping:
    return Keeping()


@pytest.fixture
def server(backend: Keeping) -> Iterator[Running]:
    with serving(backend) as running:
        yield running


def ask(server: Running, content: Any = "hello", **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return server.client().chat.completions.create(model="fake", messages=messages, **more)


def png() -> str:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 6)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_url(kind: str, file: Path) -> str:
    return f"data:{kind};base64," + base64.b64encode(file.read_bytes()).decode()


def test_the_official_client_gets_an_answer_with_its_usage(server: Running):
    answer = ask(server)
    assert answer.choices[0].message.content == "good day to you"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 1)
    assert answer.model == "fake"
    assert answer._request_id.startswith("req-")


def test_a_stream_holds_the_same_words_and_ends_with_usage_if_asked(server: Running):
    chunks = list(ask(server, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip() == "good day to you"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 2
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in ask(server, stream=True))


def test_every_sampling_parameter_reaches_the_model(server: Running, backend: Keeping):
    ask(
        server, temperature=0.5, top_p=0.9, seed=7, stop=["a", "b"], max_completion_tokens=11,
        presence_penalty=0.5, frequency_penalty=-0.5, logprobs=True, top_logprobs=3,
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2},
    )  # fmt: skip
    (options,) = backend.options
    told = {
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ("a", "b"), "max_new_tokens": 11,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logprobs": 3, "top_k": 4,
        "min_p": 0.1, "repetition_penalty": 1.2, "json_schema": None,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in told} == told


def test_a_schema_reaches_the_model_and_json_object_is_the_schema_of_objects(
    server: Running, backend: Keeping
):
    schema = {"type": "object", "properties": {"side": {"enum": ["left", "right"]}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ask(server, response_format=form)
    ask(server, response_format={"type": "json_object"})
    ask(server, response_format={"type": "text"})
    told = [options.json_schema for options in backend.options]
    assert json.loads(told[0]) == schema
    assert json.loads(told[1]) == {"type": "object"}
    assert told[2] is None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": []}, "tools"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"user": "me"}, "user"),
        ({"store": True}, "store"),
        ({"metadata": {}}, "metadata"),
        ({"best_of": 3}, "best_of"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": [{"type": "song"}]}]}, "messages.0.content.0"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(server: Running, given: Any, param: str):
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=server.chat(**given))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("unsupported_parameter", "invalid_value", "missing_required_parameter")
    assert param.split(".")[-1] in error["message"]


def test_errors_reach_the_official_client_as_its_own_classes(server: Running):
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        ask(server, tools=[])
    with pytest.raises(openai.NotFoundError, match="serves the model 'fake' only"):
        server.client().chat.completions.create(
            model="gpt-9", messages=[{"role": "user", "content": "x"}]
        )
    with server.http() as http:
        assert (
            http.post("/v1/chat/completions", content=b"{").json()["error"]["code"]
            == "invalid_json"
        )
        missing = http.post("/v1/embeddings", json={})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert "there are no embeddings here" in missing.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["prompt_embeds", "image_embeds", "audio_embeds"])
def test_embeddings_made_elsewhere_are_refused_by_name(server: Running, kind: str):
    """Unpickling them was a hole in others' servers (CVE-2025-62164); nothing of them is read."""
    part = {"type": kind, kind: "AAAA"}
    chat = server.chat() | {"messages": [{"role": "user", "content": [part]}]}
    whole = {"model": "fake", kind: "AAAA"}
    with server.http() as http:
        for path, body in (("chat/completions", chat), ("completions", whole)):
            answer = http.post(f"/v1/{path}", json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (403, "embeds_off"), path
            assert error["type"] == "permission_error"
            assert kind in error["message"]


def test_answers_have_ids_of_the_servers_own(server: Running):
    """A client's id is not taken, so two of the same cannot meet."""
    with server.http() as http:
        ids = [
            http.post(
                "/v1/chat/completions", json=server.chat(), headers={"X-Request-ID": "mine"}
            ).headers["X-Request-ID"]
            for _ in range(2)
        ]
    assert len({*ids, "mine"}) == 3


def test_every_kind_of_part_becomes_the_part_of_that_kind(
    server: Running, backend: Keeping, phantom_series: Path, clip: Path, tmp_path: Path, speech: Any
):
    from scipy.io import wavfile

    wavfile.write(tmp_path / "said.wav", 16000, speech)
    slice_url = data_url("application/dicom", sorted(phantom_series.iterdir())[0])
    content = [
        {"type": "text", "text": "hello"},
        {"type": "image_url", "image_url": {"url": png()}},
        {"type": "video_url", "video_url": {"url": data_url("video/mp4", clip)}},
        {"type": "input_audio", "input_audio": {
            "data": base64.b64encode((tmp_path / "said.wav").read_bytes()).decode(), "format": "wav"
        }},
        {"type": "file", "file": {"file_data": slice_url, "filename": "a.dcm"}},
    ]  # fmt: skip
    assert ask(server, content).choices[0].message.content == "good day to you"
    kinds = [type(part) for part in backend.messages[0][0].parts]
    assert kinds == [Text, Image, Video, Audio, Study]
    assert backend.slices == [1]


def test_a_large_medium_arrives_byte_for_byte(server: Running, backend: Keeping):
    """Base64 is decoded in pieces; the sizes lie around the seams."""
    kept: list[bytes] = []
    backend.generate = lambda messages, options=None: (  # type: ignore[method-assign]
        kept.append(messages[0].parts[0].image.read_bytes()),
        FakeBackend.generate(backend, messages, options),
    )[1]
    buffer = io.BytesIO()
    PIL.Image.effect_noise((700, 700), 50).save(buffer, "PNG")
    for extra in range(4):
        data = buffer.getvalue() + bytes(extra)
        assert len(data) > 3 * 2**18 / 4
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        ask(server, [{"type": "image_url", "image_url": {"url": url}}])
        assert kept[-1] == data


def test_nothing_of_a_request_stays_on_disk(server: Running, backend: Keeping):
    ask(
        server,
        [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": png()}}],
    )
    picture = backend.messages[0][0].parts[1].image
    from tests.pipelines.server.running import wait_until

    wait_until(lambda: not picture.parent.exists(), "the folder is removed")


def test_dicom_files_that_follow_each_other_are_one_study(
    server: Running, backend: Keeping, phantom_series: Path
):
    client = server.client()
    files = sorted(phantom_series.iterdir())
    ids = [client.files.create(file=f, purpose="user_data").id for f in files]
    parts = [{"type": "file", "file": {"file_id": name}} for name in ids]
    ask(server, [*parts, {"type": "text", "text": "hello"}])
    assert backend.slices == [len(files)]
    assert [type(p) for p in backend.messages[0][0].parts] == [Study, Text]


def test_a_study_is_shown_as_its_media_options_say(
    server: Running, backend: Keeping, phantom_series: Path
):
    """They may stand at any of its files; the next study, behind a word, has its own."""
    urls = [data_url("application/dicom", file) for file in sorted(phantom_series.iterdir())]
    parts: list[Any] = [{"type": "file", "file": {"file_data": url}} for url in urls[:4]]
    options = {"window": {"center": 40, "width": 400}, "frames": 5}
    parts[1]["media_options"] = parts[2]["media_options"] = options
    ask(server, [*parts[:3], {"type": "text", "text": "hello"}, parts[3]])
    first, _, second = backend.messages[0][0].parts
    assert (first.window, first.frames) == ((40.0, 400.0), 5)
    assert (second.window, second.frames) == (None, None)
    assert backend.slices == [3, 1]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"window": {"center": 40}}, "messages.0.content.0.file.media_options.window.width"),
        ({"window": {"center": 40, "width": 0}}, "messages.0.content.0.file.media_options.window.width"),
        ({"window": "lung"}, "messages.0.content.0.file.media_options.window"),
        ({"frames": 0}, "messages.0.content.0.file.media_options.frames"),
        ({"frames": 2.5}, "messages.0.content.0.file.media_options.frames"),
        ({"colour": "red"}, "messages.0.content.0.file.media_options.colour"),
    ],
)  # fmt: skip
def test_media_options_that_are_malformed_are_named(
    server: Running, phantom_series: Path, options: Any, param: str
):
    url = data_url("application/dicom", sorted(phantom_series.iterdir())[0])
    part: Any = {"type": "file", "file": {"file_data": url}, "media_options": options}
    with server.http() as http:
        body = {"model": "fake", "messages": [{"role": "user", "content": [part]}]}
        answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_media_options_go_with_one_study_only(server: Running, phantom_series: Path):
    urls = [data_url("application/dicom", file) for file in sorted(phantom_series.iterdir())]
    told = [
        {"type": "file", "file": {"file_data": url}, "media_options": {"frames": frames}}
        for frames, url in ((3, urls[0]), (4, urls[1]), (3, png()))
    ]
    with pytest.raises(openai.BadRequestError, match=r"content\.1\.media_options differ"):
        ask(server, told[:2])
    with pytest.raises(openai.BadRequestError, match=r"content\.0\.media_options is not supported"):
        ask(server, told[2:])
    with pytest.raises(openai.BadRequestError, match="media_options"):
        ask(server, [{"type": "image_url", "image_url": {"url": png()}, "media_options": {}}])


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "remote_url_off"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "remote_url_off"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "invalid_value"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}}, "invalid_value"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "unsupported_file"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "unsupported_file"),
        ({"type": "file", "file": {"file_id": "file-none"}}, "file_not_found"),
        ({"type": "file", "file": {}}, "invalid_value"),
        ({"type": "file", "file": {"file_id": "a", "file_data": "b"}}, "invalid_value"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_used_is_named(server: Running, part: Any, code: str):
    messages = [{"role": "user", "content": ["x", part]}]
    messages[0]["content"][0] = {"type": "text", "text": "hello"}  # type: ignore[index]
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "fake", "messages": messages})
    assert answer.json()["error"]["code"] == code, answer.text
    assert answer.status_code == (404 if code == "file_not_found" else 400)


def test_log_probabilities_take_openais_form():
    class Telling(FakeBackend):
        def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
            yield Token("ä", (Logprob("ä", -0.5, 3, (("ä", -0.5), ("b", -1.5))),))
            yield Finished("ä", "length", Usage(1, 1, 0))

    with serving(Telling()) as server:
        answer = ask(server, logprobs=True, top_logprobs=2)
        (first,) = answer.choices[0].logprobs.content
        assert (first.token, first.logprob, first.bytes) == ("ä", -0.5, [0xC3, 0xA4])
        assert [(t.token, t.logprob) for t in first.top_logprobs] == [("ä", -0.5), ("b", -1.5)]
        assert answer.choices[0].finish_reason == "length"
        (chunk, *_) = ask(server, logprobs=True, top_logprobs=2, stream=True)
        assert chunk.choices[0].logprobs.content[0].token == "ä"
        assert ask(server).choices[0].logprobs is None


def test_completions_and_token_counts(server: Running, backend: Keeping):
    client = server.client()
    answer = client.completions.create(model="fake", prompt="hello you", max_tokens=9)
    assert answer.choices[0].text == "good day to you"
    assert backend.options[0].max_new_tokens == 9
    chunks = list(client.completions.create(model="fake", prompt="hello", stream=True))
    assert "".join(c.choices[0].text for c in chunks).strip() == "good day to you"
    with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
        client.completions.create(model="fake", prompt="x", suffix="y")
    with server.http() as http:
        counted = http.post("/v1/tokenize", json={"model": "fake", "prompt": "one two three"})
        both = http.post("/v1/tokenize", json={"model": "fake", "prompt": "a", "messages": [
            {"role": "user", "content": "b"}]})  # fmt: skip
    assert counted.json() == {"count": 3, "max_model_len": 4096}
    assert both.json()["error"]["param"] == "prompt"


def test_models_are_listed(server: Running):
    client = server.client()
    assert [m.id for m in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_one_poisoned_request_fails_alone_and_names_no_patient(caplog: pytest.LogCaptureFixture):
    """S5: k of n bad requests give exactly k errors."""
    from concurrent.futures import ThreadPoolExecutor

    bad = {7, 23, 31, 38}
    from pipelines.server.settings import Settings

    with serving(Gated().open(), Settings(max_running=8, max_waiting=64)) as server:
        with server.http() as http, ThreadPoolExecutor(40) as pool:

            def one(number: int) -> tuple[int, str]:
                text = "poison" if number in bad else f"hello {number}"
                answer = http.post("/v1/chat/completions", json=server.chat(text))
                return answer.status_code, answer.text

            answers = list(pool.map(one, range(40)))
        assert {i for i, (status, _) in enumerate(answers) if status != 200} == bad
        assert {answers[i][0] for i in bad} == {500}
        whole = [json.loads(text) for status, text in answers if status == 200]
        assert {a["choices"][0]["message"]["content"] for a in whole} == {"word word word"}
        assert server.metric("request_errors_total", stage="model") == len(bad)
        assert server.metric("num_requests_running") == 0
    assert "Mustermann" not in caplog.text + "".join(text for _, text in answers)
    assert "RuntimeError" in caplog.text


def test_an_error_after_the_first_token_is_the_streams_last_event():
    class Breaking(FakeBackend):
        def generate(self, messages: Any, options: Any = None) -> Iterator[Any]:
            yield Token("so ")
            raise RuntimeError("Mustermann")

    with serving(Breaking()) as server:
        stream = ask(server, stream=True)
        assert next(stream).choices[0].delta.content == "so "
        with pytest.raises(openai.APIError, match="an unexpected failure"):
            list(stream)
