# SPDX-License-Identifier: Apache-2.0
#
# The environment in which scripts here compare programs by CPU time; to be sourced.

# Nothing that somebody set for another program may slow one side down.
while IFS='=' read -r name _; do
    case $name in
    OPENBLAS_* | GOTO_* | MKL_* | BLIS_* | NVPL_* | OMP_* | KMP_* | GOMP_* | ATEN_* | DNNL_* | ONEDNN_* | \
        NPY_* | TF_* | XLA_* | TORCH* | PYTORCH_* | GLIBC_TUNABLES | MALLOC_* | LD_PRELOAD)
        unset "$name"
        ;;
    esac
done < <(env)
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# A batch of 4,096 makes temporaries of 64 MB. Mapped and given back each step, their page faults take
# longer than the arithmetic. A threshold above 32 MB is ignored, so: no maps at all, never trimmed, and
# one arena, for the others end at 64 MB.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_TOP_PAD_=67108864 MALLOC_ARENA_MAX=1
