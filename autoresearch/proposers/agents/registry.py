"""The agents that are known: how each is started, logged in and told what to do."""

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from autoresearch.errors import LabError

PROMPT_FILE = "PROMPT.md"
READ_PROMPT_FILE = (
    f"Read the file {PROMPT_FILE} in this folder and do exactly what it says."
)
# What programs need to run at all: no keys among them.
BASE_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "TZ", "TERM", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "NODE_EXTRA_CA_CERTS"),
)


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One row of the table: how an agent is started and logged in."""

    argv: tuple[str, ...]  # {folder} and {prompt} are filled in
    acp_argv: tuple[str, ...] = ()  # as an ACP agent, which is preferred; or empty
    prompt_on_stdin: bool = True  # the prompt comes on stdin; else it reads PROMPT.md
    variables: tuple[str, ...] = ()  # passed on when set
    login_variables: tuple[str, ...] = ()  # of those, which log it in
    login_hint: str = ""  # what a person types once; {home} is filled in
    login_files: tuple[str, ...] = ()  # files of a login, below its HOME
    install_hint: str = ""


AGENT_SPECS = {
    "claude": AgentSpec(
        (
            *("claude", "-p", "--verbose", "--output-format", "stream-json"),
            *("--permission-mode", "acceptEdits", "--strict-mcp-config"),
            *("--no-session-persistence", "--tools", "Read,Edit,Write,Grep,Glob"),
        ),
        variables=(
            "ANTHROPIC_BASE_URL",
            "ANTHROPIC_MODEL",
            "ANTHROPIC_SMALL_FAST_MODEL",
        ),
        login_variables=(
            *("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        ),
        login_hint="export CLAUDE_CODE_OAUTH_TOKEN=$(claude setup-token), "
        "or once: HOME={home} claude /login",
        login_files=(".claude/.credentials.json",),
        install_hint="npm install -g @anthropic-ai/claude-code",
    ),
    "codex": AgentSpec(
        (
            *("codex", "exec", "--json", "--sandbox", "workspace-write"),
            *("--skip-git-repo-check", "--ephemeral", "-C", "{folder}", "-"),
        ),
        variables=("OPENAI_BASE_URL",),
        login_variables=("CODEX_API_KEY", "OPENAI_API_KEY"),
        login_hint="once: HOME={home} codex login",
        login_files=(".codex/auth.json", ".codex/config.toml"),
        install_hint="npm install -g @openai/codex",
    ),
    "gemini": AgentSpec(
        (
            *("gemini", "-p", "", "-o", "stream-json"),
            *("--approval-mode", "auto_edit", "--skip-trust"),
        ),
        acp_argv=("gemini", "--acp", "--approval-mode", "auto_edit", "--skip-trust"),
        variables=("GOOGLE_GEMINI_BASE_URL", "GEMINI_MODEL", "GOOGLE_CLOUD_PROJECT"),
        login_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        login_hint="once: HOME={home} gemini, then choose Login with Google",
        login_files=(".gemini/oauth_creds.json",),
        install_hint="npm install -g @google/gemini-cli",
    ),
    "opencode": AgentSpec(
        (
            "opencode",
            "run",
            "--format",
            "json",
            "--auto",
            "--dir",
            "{folder}",
            READ_PROMPT_FILE,
        ),
        prompt_on_stdin=False,
        acp_argv=("opencode", "acp"),
        variables=("OPENCODE_CONFIG", "OPENCODE_CONFIG_CONTENT"),
        login_variables=(
            *("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY"),
            *("GEMINI_API_KEY", "OPENCODE_CONFIG_CONTENT", "OPENCODE_CONFIG"),
        ),
        login_hint="once: HOME={home} opencode auth login",
        login_files=(
            ".local/share/opencode/auth.json",
            ".config/opencode/opencode.json",
        ),
        install_hint="npm install -g opencode-ai",
    ),
    "aider": AgentSpec(
        (
            *("aider", "--message-file", "{prompt}", "--yes-always"),
            *("--no-auto-commits", "--no-stream", "--no-check-update"),
            *("--analytics-disable", "--no-show-model-warnings", "train.py"),
        ),
        prompt_on_stdin=False,
        variables=("OPENAI_API_BASE", "OLLAMA_API_BASE", "AIDER_MODEL"),
        login_variables=(
            *("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY"),
            *("GEMINI_API_KEY", "OLLAMA_API_BASE"),
        ),
        login_hint="export ANTHROPIC_API_KEY=..., or OPENAI_API_KEY, and AIDER_MODEL",
        install_hint="pipx install aider-chat",
    ),
}


# -- the table -------------------------------------------------------------------------


def load_agent_spec(spec: str) -> AgentSpec:
    """The row of an agent's name, or of `cmd:"..."`, `acp:"..."`; else LabError."""
    way, _, words = spec.partition(":")
    if way not in ("cmd", "acp"):
        return AGENT_SPECS[spec]
    words = words.strip()
    if len(words) > 1 and words[0] == words[-1] and words[0] in "\"'":
        words = words[1:-1]
    try:
        argv = tuple(shlex.split(words))
    except ValueError as error:
        raise LabError(f"proposer {spec!r} is no command: {error}") from None
    if not argv:
        raise LabError(f'proposer "{way}:" names no command. Next: {way}:"my-agent"')
    install = "install it, or give its whole path"
    if way == "acp":
        return AgentSpec((), acp_argv=argv, install_hint=install)
    return AgentSpec(argv, install_hint=install)


def require_command(spec: str, kind: AgentSpec) -> None:
    """LabError when the command is not there."""
    program = (kind.acp_argv or kind.argv)[0]
    if shutil.which(program) is None:
        where = "there, or may not be run" if "/" in program else "on the PATH"
        raise LabError(
            f"proposer {spec!r}: {program} is not {where}. Next: {kind.install_hint}"
        )


def create_agent_home(spec: str) -> Path:
    """The HOME that is the agent's own, and lasts, so that a login into it does."""
    name = re.sub(r"[^a-z0-9]+", "-", spec.lower())[:40].strip("-")
    home = locate_agent_homes() / name
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home.resolve()


def locate_agent_homes() -> Path:
    """The folder of all agents' HOMEs."""
    root = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(root).expanduser().resolve() / "autoresearch" / "agents"


def build_environment(kind: AgentSpec, home: Path) -> dict[str, str]:
    """The agent's whole environment."""
    names = (*BASE_VARIABLES, *kind.variables, *kind.login_variables)
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {
        **passed,
        "HOME": str(home),
        "PWD": str(home),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "NO_COLOR": "1",
        "CI": "1",
        "DISABLE_AUTOUPDATER": "1",
    }


def check_login(spec: str) -> str:
    """`ok`, or what to type to log in, as far as can be told without asking it."""
    kind = load_agent_spec(spec)
    if not kind.login_variables:
        return "ok"
    home = create_agent_home(spec)
    if any(os.environ.get(name) for name in kind.login_variables):
        return "ok"
    if any((home / name).exists() for name in kind.login_files):
        return "ok"
    return f"not logged in. Next: {kind.login_hint.format(home=home)}"
