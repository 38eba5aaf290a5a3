"""Who may open a study: keys of invitations, addresses of this machine, and those who guess."""

import stat

import pytest

from wm.errors import InputError
from wm.study import access
from wm.study.access import Guesses, is_known, is_loopback, load_keys, make_keys
from wm.study.database import RefusedError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_addresses_of_this_machine_are_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "lab.example", "localhost.example", ""])
def test_other_addresses_are_not_loopback(host):
    assert not is_loopback(host)


def test_a_made_key_is_its_owners_and_is_read_again(tmp_path):
    path = tmp_path / "keys"
    keys = make_keys(path)
    assert load_keys(path) == keys and len(keys[0]) == 22
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="cannot be written: File exists"):
        make_keys(path)
    assert load_keys(path) == keys != make_keys(tmp_path / "other")


def test_keys_of_a_file_are_read_and_known(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the lab\n\n  first-key-of-22-letters  \nsecond_key_of_22_letters\n")
    keys = load_keys(path)
    assert keys == ("first-key-of-22-letters", "second_key_of_22_letters")
    assert [is_known(key, keys) for key in (*keys, "", "first-key-of-22-letter", "ü" * 30)] == [True] * 2 + [False] * 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no key in it"),
        (b"# nothing\n", "no key in it"),
        (b"short\n", "key 1 has 5 letters; expected 22"),
        (b"a-good-key-of-22-letters\n" + b"a key with blanks in it, long\n", "key 2"),
        ("schlüssel-mit-umlauten-darin".encode(), "key 1"),
        (b"\xff" * 40, "cannot be read"),
    ],
)
def test_a_bad_file_of_keys_is_refused(tmp_path, content, reason):
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        load_keys(tmp_path / "keys")


def test_who_guesses_waits_and_others_do_not(monkeypatch):
    monkeypatch.setattr(access, "MAX_MISSES", 3)
    guesses = Guesses()
    for second in range(3):
        guesses.check("a", second)
        guesses.count("a", second)
    guesses.check("b", 3)
    with pytest.raises(RefusedError, match="wait a minute"):
        guesses.check("a", 59.9)
    guesses.check("a", 60)


def test_many_addresses_together_are_no_way_around(monkeypatch):
    monkeypatch.setattr(access, "MAX_MISSES_TOGETHER", 5)
    guesses = Guesses()
    for number in range(5):
        guesses.count(f"address-{number}", 0)
    with pytest.raises(RefusedError):
        guesses.check("another", 1)
    guesses.check("another", 61)


def test_addresses_that_are_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(access, "_MAX_ADDRESSES", 4)
    guesses = Guesses()
    for number in range(10):
        guesses.count(f"address-{number}", 0)
    assert list(guesses._misses) == [f"address-{number}" for number in range(6, 10)]
