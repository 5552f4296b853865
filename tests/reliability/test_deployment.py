"""The files of deploy/: rendered, and their commands read by what reads them; two machines by torchrun's rendezvous."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_kills import same
from torch.distributed.run import get_args_parser

from fewstep.cli import parse_training

DEPLOY = Path(__file__).parents[2] / "deploy"
STEPS = 12


def stub(folder, name, script):
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{script}\n")
    file.chmod(0o755)


def run_slurm_script(folder, srun, *arguments):
    """Runs deploy/slurm.sh as a job of two machines of one process, where `srun` does what SLURM's would."""
    folder.mkdir()
    stub(folder, "scontrol", '[ "$*" = "show hostnames localhost,other" ] && printf "127.0.0.1\\nother\\n"')
    stub(folder, "srun", srun)
    stub(folder, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    job = {
        "SLURM_JOB_NODELIST": "localhost,other", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1",
        "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": str(os.getpid()),
    }  # fmt: skip
    return subprocess.run(
        ["bash", DEPLOY / "slurm.sh", *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=500, env={**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}"},
    )  # fmt: skip


def kubernetes():
    service, job = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return service, job["spec"], job["spec"]["template"]["spec"]


def skypilot(tmp_path):
    """Returns the file, and the command that it ends in on the second of its machines."""
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    stub(tmp_path, "torchrun", 'printf "%s\\n" torchrun "$@"')
    machine = {
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": task["resources"]["accelerators"].partition(":")[2],
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", task["run"]], capture_output=True, text=True, check=True,
        env={**os.environ, **task["envs"], **machine, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    return task, done.stdout.splitlines()


def read(command):
    """Returns what torchrun and fewstep read in a command."""
    assert command[0] == "torchrun"
    launch = get_args_parser().parse_args(command[1:])
    assert launch.module
    assert launch.training_script == "fewstep"
    name, *arguments = launch.training_script_args
    assert name == "distill"
    return launch, parse_training("distill", arguments)


def test_slurm(tmp_path):
    done = run_slurm_script(tmp_path / "bin", 'printf "%s\\n" "$@"', "sd15", "--teacher", "a b", "--out", "/runs/c")
    launch, config = read(done.stdout.splitlines())
    assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "1", 3)
    assert launch.rdzv_endpoint == f"127.0.0.1:{20000 + os.getpid() % 10000}"
    assert (launch.rdzv_backend, launch.rdzv_id) == ("c10d", str(os.getpid()))
    assert (config.teacher, config.out) == ("a b", Path("/runs/c"))
    settings = [line.split()[1:] for line in (DEPLOY / "slurm.sh").read_text().splitlines() if line[:7] == "#SBATCH"]
    assert all(len(each) == 1 and each[0].startswith("--") for each in settings)
    assert ["--requeue"] in settings
    assert ["--ntasks-per-node=1"] in settings  # one torchrun on each machine


def test_kubernetes():
    service, job, pod = kubernetes()
    (container,) = pod["containers"]
    launch, config = read([*container["command"], *container["args"]])
    machines = int(launch.nnodes)
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (machines, machines, "Indexed")
    assert int(launch.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    # A pod's name of itself is JOB-INDEX, in the domain of a service without an address.
    assert (service["spec"]["clusterIP"], service["metadata"]["name"]) == ("None", pod["subdomain"])
    assert launch.rdzv_endpoint.partition(":")[0] == f"fewstep-0.{pod['subdomain']}"
    assert service["spec"]["selector"] == {"job-name": "fewstep"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert str(config.out).startswith(mounts["work"])
    assert mounts["memory"] == "/dev/shm"


def test_skypilot(tmp_path):
    task, command = skypilot(tmp_path)
    launch, config = read(command)
    assert (launch.nnodes, launch.nproc_per_node, launch.node_rank) == ("4", "8", 1)
    assert launch.master_addr == "10.0.0.1"
    assert str(config.out).startswith(*task["volumes"])
    known = {"name", "num_nodes", "resources", "envs", "volumes", "setup", "run"}
    assert task.keys() == known


def training(tiny, photos, out):
    return [
        "scenes", "--teacher", str(tiny), "--data", str(photos), "--resolution", "16", "--out", str(out),
        "--steps", str(STEPS), "--batch-size", "4", "--checkpoint-every", "2", "--sample-every", "0",
    ]  # fmt: skip


def wait_until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def end_machine(agent):
    """Kills an agent and the process that it started, as a machine that goes takes them with it."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    for process in (agent.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    agent.wait()


@pytest.mark.slow
def test_a_machine_goes_and_the_run_is_the_undisturbed_one(tiny, photos, tmp_path):
    both = '"$@" & first=$!; "$@" & wait $! && wait $first'
    done = run_slurm_script(tmp_path / "bin", both, *training(tiny, photos, tmp_path / "undisturbed"))
    assert done.returncode == 0, done.stderr[-3000:]

    *_, pod = kubernetes()
    (container,) = pod["containers"]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    here = {"--nnodes=4": "--nnodes=2", "--nproc-per-node=8": "--nproc-per-node=1"}
    launch = [here.get(each, each) for each in container["args"]]
    launch = [each.replace("fewstep-0.fewstep:29500", f"127.0.0.1:{port}") for each in launch[: launch.index("sd15")]]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, *training(tiny, photos, tmp_path / "run")]

    told = {each["name"]: each["value"] for each in container["env"]} | {"OMP_NUM_THREADS": "1"}

    def start(name):
        with (tmp_path / name).open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **told})

    stays = start("stays")
    wait_until(lambda: listens(port))  # the first machine holds the rendezvous, as the first pod does
    goes = start("goes")
    wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("step-*2")))
    end_machine(goes)
    back = start("back")
    assert [back.wait(200), stays.wait(200)] == [0, 0], (tmp_path / "stays").read_text()[-3000:]
    assert "goes on after update" in (tmp_path / "stays").read_text() + (tmp_path / "back").read_text()
    assert same(tmp_path / "undisturbed", tmp_path / "run", STEPS)
