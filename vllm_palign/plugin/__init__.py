"""vLLM's entry point. ``register`` runs in every vLLM process and is the only place with side effects.

Installed but not enabled, it adds the command-line options and nothing else. Enabled means: named in
``VLLM_PLUGINS``, which is also what ``--plugin palign`` does.

Imports little: vLLM logs and swallows what fails while an entry point is *loaded* and would go on to
serve plainly, but lets what fails in its *call* stop the process.
"""

from __future__ import annotations

from vllm_palign.errors import PalignStartupError
from vllm_palign.switch import enabled


def register() -> None:
    """Entry point of the group ``vllm.general_plugins``.

    Enabled, it raises PalignStartupError on a vLLM it does not fit. Not enabled, it must not be why a
    vLLM does not start: there the options are left out, so that asking for them is a usage error.
    """
    if enabled():
        from vllm_palign.compat.hooks import install
        from vllm_palign.plugin.command_line import COMMAND_LINE
        from vllm_palign.plugin.redaction import keep_passwords_out_of_logs
        from vllm_palign.plugin.wraps import HOOKS, READS

        install((*COMMAND_LINE, *HOOKS), READS)
        keep_passwords_out_of_logs()
        return
    try:
        from vllm_palign.compat.hooks import install
        from vllm_palign.plugin.command_line import COMMAND_LINE

        install(COMMAND_LINE)
    except (PalignStartupError, ImportError) as error:
        from vllm.logger import init_logger

        init_logger("vllm.palign").warning("palign is installed but cannot be enabled: %s", error)
