#!/bin/sh
#SBATCH --job-name=tests
#SBATCH --cpus-per-task=2
#SBATCH --mem=2G
exec sekexe-ci exec --cpus 2 --memory 1G --result "result-$SLURM_JOB_ID.json" ci/test.sh
