from typing import get_args

import pytest

from app.errors import SettingsError
from app.session import BATCH_SIZES
from app.settings import Settings, load_settings


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FCOS_PORT", "abc", "FCOS_PORT has value 'abc'"),
        ("FCOS_PORT", "70000", "FCOS_PORT has value '70000'"),
        ("FCOS_PROVIDER", "gpu", "FCOS_PROVIDER has value 'gpu'"),
        ("FCOS_MAX_PIXELS", "0", "FCOS_MAX_PIXELS"),
        ("FCOS_PROVIDR", "cpu", "did you mean FCOS_PROVIDER"),
        ("FCOS_MAX_BATCH", "12", "FCOS_MAX_BATCH has value 12 .input should be 0, 1, 2, 4, 8 or 16"),
        ("FCOS_API_KEYS", ",", "no key"),
        ("FCOS_API_KEYS", "long-enough-1,short", "FCOS_API_KEYS: a key must have at least 8 characters"),
        ("FCOS_API_KEYS", "schlüssel-1", "FCOS_API_KEYS: a key .* printable ASCII"),
        ("FCOS_ADMIN_KEY", "short", "FCOS_ADMIN_KEY: a key must have at least 8 characters"),
        ("FCOS_CORS_ORIGINS", "https://*.shop.example", "is not an origin"),
        ("FCOS_X", "1", "FCOS_X is not a setting"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_the_largest_batch_is_one_that_is_warmed() -> None:
    assert get_args(Settings.model_fields["max_batch"].annotation) == (0, *BATCH_SIZES)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FCOS_{name.upper()}", raising=False)
    assert load_settings() == Settings()
    monkeypatch.setenv("FCOS_PORT", "9000")
    monkeypatch.setenv("FCOS_MAX_BATCH", "8")
    assert (load_settings().port, load_settings().max_batch) == (9000, 8)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_as_if_it_was_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(f"FCOS_{name.upper()}", raising=False)
    expected = load_settings()
    monkeypatch.setenv(f"FCOS_{name.upper()}", "")  # as compose and Kubernetes hand on what is not set
    assert load_settings() == expected


def test_an_admin_key_of_blanks_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCOS_ADMIN_KEY", "\n")
    assert load_settings().admin_key is None


def test_a_keys_blanks_are_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets come from files, which end in a line break."""
    monkeypatch.setenv("FCOS_ADMIN_KEY", "secret-123\n")
    monkeypatch.setenv("FCOS_API_KEYS", "secret-456 ,\nsecret-789\n")
    settings = load_settings()
    assert settings.admin_key == "secret-123"
    assert settings.api_keys == {"secret-456", "secret-789"}
    monkeypatch.setenv("FCOS_ADMIN_KEY", "secret\n-123")
    with pytest.raises(SettingsError, match="FCOS_ADMIN_KEY"):
        load_settings()


def test_an_origin_has_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCOS_CORS_ORIGINS", "https://shop.example/")
    with pytest.raises(SettingsError, match=r"FCOS_CORS_ORIGINS.*without a path"):
        load_settings()
