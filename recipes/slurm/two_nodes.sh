#!/bin/bash
# Two nodes of 8 GPUs under Slurm: sbatch recipes/slurm/two_nodes.sh recipes/text_classification.py [arguments]
# It starts one launcher on each node, which starts a process for each GPU.

#SBATCH --job-name=hf_mhe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.out

set -euo pipefail
GPUS_PER_NODE=8
export MAIN_ADDRESS
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# SLURM_NODEID is another one on each node, so the shell there has to read it.
srun bash -c 'accelerate launch --config_file recipes/accelerate_configs/multi_node.yaml \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * '"$GPUS_PER_NODE"')) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_ADDRESS" "$@"' launch "$@"
