"""Goal: the model that a form is priced by is the one that every server reads in it, or the form is refused."""

from __future__ import annotations

import httpx
import pytest

from contracts.errors import MalformedMessage
from seller.body import model_of
from seller.limits import FORM_PARTS_MAX

FORM = b"multipart/form-data; boundary=x"
CHEAP = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ncheap\r\n'
END = b"--x--\r\n"


def _read(content_type: bytes, body: bytes) -> str | None:
    return model_of([(b"content-type", content_type)], body)


def _and_a_field(*head: bytes) -> bytes:
    """Return a form that names a cheap model, and a dear one in a field whose head some servers read as `model`."""
    return CHEAP + b"--x\r\n" + b"\r\n".join(head) + b"\r\n\r\ndear\r\n" + END


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="y"; name ="model"',
        b'form-data; name="y"; name\t= model',
        b'form-data; name="y"; NAME="model"',
        b"form-data; name=\"y\"; name*=utf-8''model",
        b'form-data; name="y"; name*0="mo"; name*1="del"',
        b'form-data; name="m\\odel"',
        b'form-data; filename="a\\"; name=model; z="; name="y"',
        b'form-data; name="y"\n; name="model"',
        b"form-data; name=",
        b"form-data",
    ],
)
def test_a_field_with_a_name_that_servers_read_differently_is_refused(disposition: bytes) -> None:
    with pytest.raises(MalformedMessage):
        _read(FORM, _and_a_field(b"Content-Disposition: " + disposition))


@pytest.mark.parametrize(
    "head",
    [
        (b'Content-Disposition: form-data; name="y"', b' ; name="model"'),
        (b'X-Y: z\nContent-Disposition: form-data; name="model"', b'Content-Disposition: form-data; name="y"'),
        (b'X-Y: z\rContent-Disposition: form-data; name="model"', b'Content-Disposition: form-data; name="y"'),
        (b'Content-Disposition: form-data; name="y"', b'Content-Disposition : form-data; name="model"'),
        (b'Content-Disposition: form-data; name="y"', b'content-disposition: form-data; name="model"'),
    ],
)
def test_a_field_with_a_head_that_servers_cut_differently_is_refused(head: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedMessage):
        _read(FORM, _and_a_field(*head))


def test_a_model_that_is_encoded_once_more_is_refused() -> None:
    head = b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'
    with pytest.raises(MalformedMessage):
        _read(FORM, b"--x\r\n" + head + b"=64ear\r\n" + END)


@pytest.mark.parametrize(
    "parameters",
    [b"; charset=utf-7", b"; charset=utf-16", b"; charset*=utf-8''utf-7", b"; boundary=z", b'; boundary ="z"'],
)
def test_a_form_of_another_character_set_or_a_second_boundary_is_refused(parameters: bytes) -> None:
    hidden = _and_a_field(b'Content-Disposition: form-data; name="+AG0-odel"')
    assert _read(FORM, hidden) == "cheap"
    with pytest.raises(MalformedMessage):
        _read(FORM + parameters, hidden)


@pytest.mark.parametrize("body", [b'{"model":"cheap","y":"&model=dear&"}', b'{"model":"cheap","y":";m%6Fdel=dear;"}'])
def test_json_that_is_a_form_with_another_model_is_refused(body: bytes) -> None:
    assert _read(b"application/json", body) == "cheap"
    with pytest.raises(MalformedMessage):
        _read(b"application/x-www-form-urlencoded", body)


def test_json_in_another_character_set_is_refused() -> None:
    body = b'{"model":"cheap","+AG0-odel":"dear"}'
    assert _read(b'application/json; charset="UTF-8"', body) == "cheap"
    with pytest.raises(MalformedMessage):
        _read(b"application/json; charset=utf-7", body)


@pytest.mark.parametrize("first", [b"", b"application/json"])
def test_two_content_types_are_refused(first: bytes) -> None:
    with pytest.raises(MalformedMessage):
        model_of([(b"content-type", first), (b"content-type", FORM)], CHEAP + END)


@pytest.mark.parametrize(
    "body",
    [
        b"a preamble\r\n" + CHEAP + END,
        b"\r\n" + CHEAP + END,
        CHEAP + END + b"an epilogue",
        CHEAP + b"--x\r\n",
        CHEAP,
        b"",
    ],
)
def test_a_form_that_does_not_begin_and_end_with_its_boundary_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage, match="boundary"):
        _read(FORM, body)


def test_a_form_that_names_two_models_or_has_too_many_fields_is_refused() -> None:
    dear = CHEAP.replace(b"cheap", b"dear")
    with pytest.raises(MalformedMessage, match="model: is set twice"):
        _read(FORM, CHEAP + dear.replace(b'"model"', b'"Model"') + END)
    other = CHEAP.replace(b'"model"', b'"y"')
    assert _read(FORM, other * (FORM_PARTS_MAX - 2) + CHEAP + END) == "cheap"
    with pytest.raises(MalformedMessage, match="form fields"):
        _read(FORM, other * (FORM_PARTS_MAX - 1) + CHEAP + END)


def test_forms_that_clients_write_are_read() -> None:
    request = httpx.Request(
        "POST", "http://s", data={"model": "cheap"}, files={"file": ('a "b"; c.wav', b"RIFF", "audio/wav")}
    )
    assert _read(request.headers["content-type"].encode(), request.read()) == "cheap"
    of_dotnet = (
        b"--x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model\r\n\r\ncheap\r\n"
        b"--x\r\nContent-Disposition: form-data; name=file; filename=a.wav; filename*=utf-8''a.wav\r\n\r\nRIFF\r\n"
        + END
    )
    assert _read(b'multipart/form-data; boundary="x"', of_dotnet) == "cheap"
    assert _read(b"application/x-www-form-urlencoded", b'{"model":"cheap"}') == "cheap"  # curl, when nobody says
