"""Settings of `variantd serve`: a TOML file, `VARIANTD_…` in the environment, options on top.

Nested settings are joined by two underscores in the environment, such as VARIANTD_HTTP_TLS__CERTIFICATE.
"""

import re
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from shared.errors import Fault, Invalid

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62}\.)*[a-z0-9_-]{0,62}[a-z0-9_]", re.IGNORECASE | re.ASCII)


_ORIGIN = re.compile(
    r"(https://(?!.*:443$)|http://(?!.*:80$))([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
)


class HttpTls(BaseModel):
    """The certificate of the HTTP listener."""

    model_config = ConfigDict(extra="forbid")

    certificate: Path = Field(description="PEM file with the certificate chain.")
    key: Path = Field(description="PEM file with its key.")


class Oidc(BaseModel):
    """Whose bearer tokens let operators in, beside API keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str = Field(min_length=1, description="What a token's `iss` has to be, exactly.")
    audience: str = Field(min_length=1, description="What a token's `aud` has to be, or to list.")
    jwks_url: str | None = Field(
        None,
        description="Where the issuer publishes its keys: https, or http on loopback. This or `jwks_file`.",
    )
    jwks_file: Path | None = Field(None, description="A file with the keys (JWKS) instead.")
    algorithms: tuple[Literal["ES256", "RS256"], ...] = Field(
        ("ES256", "RS256"), min_length=1, description="What tokens may be signed with: ES256, RS256."
    )
    project_claim: str = Field(
        "project", min_length=1, description="The claim with the name or id of the token's project."
    )
    scope_claim: str = Field(
        "scope",
        min_length=1,
        description="The claim with the scopes, a list or a text with spaces; unknown ones are ignored.",
    )
    leeway_seconds: int = Field(
        30, ge=0, le=300, description="By how much the issuer's clock may be off, in seconds."
    )

    @field_validator("jwks_url")
    @classmethod
    def _trusted(cls, value: str | None) -> str | None:
        if value is None:
            return value
        parts = urlsplit(value)
        if not parts.hostname or parts.scheme not in ("https", "http"):
            raise ValueError("write it as https://HOST/PATH")
        if parts.scheme == "http" and not _loopback(parts.hostname):
            raise ValueError("keys fetched over plain http are anybody's; use https")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("set one of jwks_url and jwks_file")
        return self


class Settings(BaseSettings):
    """Every setting with its default and what it means."""

    model_config = SettingsConfigDict(
        env_prefix="VARIANTD_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Field(
        Path("variantd-data"), description="Database, certificate authority, operator's key."
    )
    database: SecretStr | None = Field(
        None,
        description="PostgreSQL instead of the SQLite file in `data_dir`: postgresql://USER:PASSWORD@HOST/NAME; needs"
        " the extra `postgres`. Others see a command line: a password belongs in the environment or in the file.",
    )
    ca_key_file: Path | None = Field(
        None,
        description="The certificate authority in one PEM file, its key and its certificate, instead of `ca/` in"
        " `data_dir`: the same file for every server over one database. Made at the first start where it is not there.",
    )
    http: str = Field("127.0.0.1:7400", description="Where REST, health and metrics listen, HOST:PORT.")
    operator: str = Field("127.0.0.1:7401", description="Where operator gRPC listens (TLS), HOST:PORT.")
    agents: str = Field("127.0.0.1:7402", description="Where agents connect (mutual TLS), HOST:PORT.")
    advertise: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Names and addresses, without ports, this server is reached under: they go into"
        " certificates, tokens and what enrollment returns. Needed where a listener is on every address.",
    )
    advertise_operator: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Where hosts enroll, HOST:PORT, as tokens say it: a balancer, or several servers. Else `advertise`"
        " with this listener's port.",
    )
    advertise_agents: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Where agents connect, HOST:PORT, as enrollment returns it: a balancer, or several servers, tried"
        " in turn. Else `advertise` with this listener's port.",
    )
    http_tls: HttpTls | None = Field(None, description="Certificate of the HTTP listener; none: plain.")
    oidc: Oidc | None = Field(
        None, description="Bearer tokens of an identity provider, beside API keys; needs the extra `oidc`."
    )
    insecure: bool = Field(default=False, description="Allow plain HTTP on an address that is not loopback.")
    http_max_body: int = Field(
        64 * 1_048_576, ge=1_024, description="Longest body of a REST request, in bytes; longer ones get 413."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins, such as https://console.example.org, whose pages may call REST from a browser;"
        " none unless named here, and each exactly.",
    )
    rate_limit: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        allow_inf_nan=False,
        description="Requests a second that each API key may send, REST and gRPC together; 0: as many as it likes.",
    )
    rate_burst: int = Field(
        100, ge=1, description="Requests that a key may send at once before `rate_limit` holds it back."
    )
    withdraw_limit: int = Field(
        20,
        ge=0,
        le=100,
        description="After a restore: how many percent of a host's slots, and of a project's, may go back to their"
        " baselines although the host was given newer contents since the backup. More is held back and told.",
    )
    keep_events_days: int = Field(
        30,
        ge=0,
        le=36_500,
        description="How many days raw events stay after the phase they count in is over, or, where they count"
        " nowhere, after they came; 0: for ever. Sums, which results read, stay. A phase whose events are gone counts"
        " nothing more.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

    @field_validator("database")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("write it as postgresql://USER@HOST/NAME")
        return value

    @field_validator("http", "operator", "agents")
    @classmethod
    def _address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("write it as HOST:PORT, with port 0 for any free one")
        return value

    @field_validator("advertise", "advertise_operator", "advertise_agents", "cors_origins", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A text is names with commas between them: options and the environment know no lists."""
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",")) if value.strip() else ()
        return value

    @field_validator("advertise")
    @classmethod
    def _reachable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _is_name(name):
                raise ValueError(
                    f"{name!r} is no name or address that hosts can connect to;"
                    " write it without port and scheme, such as variantd.example.org or 192.0.2.7"
                )
        return value

    @field_validator("advertise_operator", "advertise_agents")
    @classmethod
    def _places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for place in value:
            host, _, port = place.rpartition(":")
            if not _is_name(host.strip("[]")) or not port.isdecimal() or not 0 < int(port) <= 65535:
                raise ValueError(f"{place!r} is nothing to connect to; write it as HOST:PORT")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write it as a browser sends it, in small letters, without a path and"
                    " without the scheme's own port, such as https://console.example.org"
                )
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(file: Path | None, options: dict[str, Any]) -> Settings:
    """The settings of a file, the environment and the options that were given.

    Raises Invalid with every fault by setting.
    """

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    if file is not None and not file.is_file():
        raise Invalid(f"there is no file {file}; `--config` names a TOML file")
    try:
        settings = FromFile(**{name: value for name, value in options.items() if value is not None})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{file} is not TOML: {error}", reason="BAD_CONFIG") from None
    except ValidationError as error:
        faults = [
            Fault(field=".".join(map(str, item["loc"])), message=item["msg"].removeprefix("Value error, "))
            for item in error.errors()
        ]
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise Invalid(f"settings: {listed}", reason="BAD_CONFIG", faults=faults) from None
    host = settings.http.rpartition(":")[0]
    if not _loopback(host) and settings.http_tls is None and not settings.insecure:
        raise Invalid(
            f"http {settings.http} is not loopback and has no certificate;"
            " set [http_tls] certificate and key, or insecure = true",
            reason="BAD_CONFIG",
        )
    for name, address in (("operator", settings.operator), ("agents", settings.agents)):
        told = settings.advertise_operator if name == "operator" else settings.advertise_agents
        if is_wildcard(address) and not (settings.advertise or told):
            raise Invalid(
                f"{name} {address} is every address of this machine, and hosts have to be told one;"
                f" set advertise to the names they reach this server under, or advertise_{name}",
                reason="BAD_CONFIG",
            )
    return settings


def is_wildcard(address: str) -> bool:
    """Whether HOST:PORT is every address of the machine, and so none that anybody can connect to."""
    try:
        return ip_address(address.rpartition(":")[0].strip("[]")).is_unspecified
    except ValueError:
        return False


def _is_name(name: str) -> bool:
    try:
        return not ip_address(name).is_unspecified
    except ValueError:
        return _NAME.fullmatch(name) is not None


def _loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
