"""What the host does about packages and about install.py of extensions. Its oddities are kept on purpose: see each comment."""

import importlib.metadata
import json
import os
import subprocess
import sys

from modules.logger import log, setup_logging  # noqa: F401  script_loading takes setup_logging from here

args = None  # the parsed command line; set by launch
opts = {}  # the stored settings, as read from config.json at start
errors = []
control_extensions = []  # titles of the external scripts that the Control tab lets in


def run(cmd, *nargs, **kwargs):
    """A shell line; the arguments are joined without quotes, so a path with a space does not survive."""
    options = {"check": False, "env": os.environ} | kwargs
    result = subprocess.run(f'"{cmd}" {" ".join(nargs)}', shell=True, capture_output=True, text=True, **options)
    result.stdout, result.stderr = result.stdout.strip(), result.stderr.strip()
    return result, "\n".join(part for part in (result.stdout, result.stderr) if part)


def pip(arg, ignore=False, quiet=True, *, uv=True, constraints=True):
    """Run one pip command line. Returns (CompletedProcess, output), or (None, 'offline')."""
    original = arg
    arg = arg.replace(">=", "==").strip()  # a lower bound becomes a pin
    if opts.get("offline_mode", False):
        log.warning("Offline mode enabled")
        return None, "offline"
    uv = uv and args.uv
    words = [arg]
    if constraints and arg.startswith("install"):
        words.append("-c constraints.txt")  # relative: right only in the host's own folder
    if not quiet:
        log.info(f'Install: {arg} mode={"uv" if uv else "pip"}')
    result, output = run("uv", "pip", *words) if uv else run(sys.executable, "-m", "pip", *words)
    if uv and result.returncode != 0:
        log.warning("Install: cannot use uv, fallback to pip")
        return pip(original, ignore, quiet, uv=False)
    if result.returncode != 0 and not ignore:
        errors.append(f"pip: {arg}")
        log.error(f"Install: pip: {arg}")
        log.debug(f"Install: pip code={result.returncode} output={output}")
    return result, output


def installed(package, friendly=None, quiet=False):
    """Whether each package of the line is there; '==' and '>=' both ask for exactly that version."""
    words = friendly.split() if friendly else [word for word in package.split() if word[0] not in "-=" and not word.startswith("git+")]
    for word in words:
        if "!=" in word:
            return True
        name, _, version = word.replace(">=", "==").partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if not quiet:
                log.debug(f'Install: package="{name}" install required')
            return False
        if version and found != version:
            return False
    return True


def install(package, friendly=None, ignore=False, reinstall=False, no_deps=False, quiet=False, force=False, no_build_isolation=False):
    """Install when it is not there. Returns '' when there was nothing to do, else what pip() returned."""
    if not (args.reinstall or reinstall or not installed(package, friendly, quiet=quiet)):
        return ""
    words = ["install", "" if args.uv else "--upgrade", "--force-reinstall" if force or args.reinstall else ""]
    words += ["--no-deps" if no_deps else "", "--no-build-isolation" if no_build_isolation else "", package]
    return pip(" ".join(word for word in words if word), ignore=ignore, uv=package != "uv" and not package.startswith("git+"))


def restart(argv=None):
    log.critical("Restarting process...")
    os.execv(sys.executable, ["python", *(argv if isinstance(argv, list) else sys.argv)])


def read_options():
    from modules import paths

    opts.clear()
    opts.update(paths.config)


def set_environment():
    """Since 2026-08 huggingface_hub is told where its cache is, and to be quiet, before anything imports it, with --skip-all too."""
    from modules.paths import models_path

    os.environ.setdefault("HF_HUB_CACHE", opts.get("hfcache_dir") or os.path.join(models_path, "huggingface"))
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "HF_HUB_DISABLE_SYMLINKS_WARNING"):
        os.environ.setdefault(name, "1")


def run_extension_installer(folder):
    """Run install.py of an extension: its own process, its own folder, the host importable; output is shown only on failure."""
    script = os.path.realpath(os.path.join(folder, "install.py"))
    if not os.path.isfile(script):
        return
    log.debug(f'Extension installer: builtin=False file="{script}"')
    env = os.environ.copy()
    env["PYTHONPATH"] = os.pathsep.join([os.path.abspath("."), *filter(None, [os.environ.get("PYTHONPATH")])])
    result, text = run(sys.executable, script, env=env, cwd=folder)
    if result.returncode != 0:
        errors.append(f"ext: {os.path.basename(folder)}")
        log.error(f"Extension installer error: {script}")
        log.debug(text)


def install_extensions():
    from modules.paths import extensions_dir

    disabled = [name.lower() for name in opts.get("disabled_extensions", [])]
    for name in sorted(os.listdir(extensions_dir)) if os.path.isdir(extensions_dir) else []:
        folder = os.path.join(extensions_dir, name)
        if os.path.isdir(folder) and name.lower() not in disabled and not args.safe:
            run_extension_installer(folder)


def extensions_preload(parser):
    from modules.paths import extensions_dir
    from modules.script_loading import preload_extensions

    if not args.safe:
        preload_extensions(extensions_dir, parser)


def parse_args(parser):
    return parser.parse_args()


def print_dict(values):
    return " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in values.items())
