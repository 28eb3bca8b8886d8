"""Settings of `variantd serve`: a TOML file, `VARIANTD_…` in the environment, options on top.

Nested settings are joined by two underscores in the environment, such as VARIANTD_HTTP_TLS__CERTIFICATE.
"""

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from shared.errors import Fault, Invalid


class HttpTls(BaseModel):
    """The certificate of the HTTP listener."""

    model_config = ConfigDict(extra="forbid")

    certificate: Path = Field(description="PEM file with the certificate chain.")
    key: Path = Field(description="PEM file with its key.")


class Settings(BaseSettings):
    """Every setting with its default and what it means."""

    model_config = SettingsConfigDict(
        env_prefix="VARIANTD_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    data_dir: Path = Field(
        Path("variantd-data"), description="Database, certificate authority, operator's key."
    )
    http: str = Field("127.0.0.1:7400", description="Where REST, health and metrics listen, HOST:PORT.")
    operator: str = Field("127.0.0.1:7401", description="Where operator gRPC listens (TLS), HOST:PORT.")
    agents: str = Field("127.0.0.1:7402", description="Where agents connect (mutual TLS), HOST:PORT.")
    advertise: tuple[str, ...] = Field(
        (),
        description="Names and addresses this server is reached under; they go into certificates and tokens.",
    )
    http_tls: HttpTls | None = Field(None, description="Certificate of the HTTP listener; none: plain.")
    insecure: bool = Field(default=False, description="Allow plain HTTP on an address that is not loopback.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

    @field_validator("http", "operator", "agents")
    @classmethod
    def _address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("write it as HOST:PORT, with port 0 for any free one")
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
    except ValidationError as error:
        faults = [
            Fault(field=".".join(map(str, item["loc"])), message=item["msg"]) for item in error.errors()
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
    return settings


def _loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
