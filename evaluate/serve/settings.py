"""What a server of searches can be told: declared once, for the command line, for a settings file and for Python."""

from __future__ import annotations

from dataclasses import dataclass

from glscl.common.settings import setting


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where it answers, and what it may use."""

    host: str = setting("127.0.0.1", "Address to answer at; any but this machine's own needs a token.", group="Server")
    port: int = setting(8765, "Port; 0 takes a free one.", group="Server", min=0, max=65535)
    token: str | None = setting(
        None, "What others must show. Default: a new one, where the address is not this machine's own.", group="Server"
    )
    workers: int = setting(2, "Processes that decode files.", group="Limits", min=1)
    max_upload: int = setting(
        256, "Megabytes of a picture or clip that is sent to be searched with.", group="Limits", min=1
    )
    max_thumbnails: int = setting(64, "Megabytes of thumbnails kept in memory.", group="Limits", min=1)
    max_previews: int = setting(1024, "Megabytes of playable copies kept on disk.", group="Limits", min=1)
