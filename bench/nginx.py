"""nginx as a peer: Debian's own, from the path, or unpacked without root into a cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["NginxMissing", "configuration", "nginx_program"]

_FETCH_TIMEOUT_S = 60.0

_TEMPLATE = """\
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream seller {{ server 127.0.0.1:{upstream_port}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://seller; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_set_header payment-signature "{payment}";
    }}
  }}
}}
"""


class NginxMissing(Exception):
    """There is no nginx here, and why none could be fetched."""


def configuration(folder: Path, port: int, upstream_port: int, payment: str) -> str:
    """Return settings that pass every request on with one payment header, over kept connections, piece by piece."""
    return _TEMPLATE.format(folder=folder, port=port, upstream_port=upstream_port, payment=payment)


def nginx_program(*, fetches: bool) -> Path:
    """Return the program, which is fetched if need be and if `fetches`. Raises `NginxMissing`."""
    for found in (shutil.which("nginx"), "/usr/sbin/nginx"):
        if found is not None and os.access(found, os.X_OK):
            return Path(found)
    cached = _cache() / "usr" / "sbin" / "nginx"
    if not cached.exists():
        if not fetches:
            raise NginxMissing("it is not installed")
        _unpack_package(_cache())
    try:
        subprocess.run([cached, "-v"], check=True, capture_output=True, timeout=_FETCH_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise NginxMissing(f"the one in {cached} does not run: {error}") from None
    return cached


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "farebox-bench" / "nginx"


def _unpack_package(target: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NginxMissing("it is not installed, and this is no Debian to fetch its package from")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            for command in (["apt-get", "download", "nginx"], ["sh", "-c", "dpkg-deb -x nginx_*.deb unpacked"]):
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_FETCH_TIMEOUT_S)
        except (OSError, subprocess.SubprocessError):
            raise NginxMissing("it is not installed, and `apt-get download nginx` did not fetch it") from None
        shutil.rmtree(target, ignore_errors=True)
        Path(folder, "unpacked").rename(target)
