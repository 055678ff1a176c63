# Both jobs on GPUs, one process or torchrun's many:
#   docker build -f docker/train.Dockerfile -t retort .
#   docker run --gpus all --shm-size 8g -v IMAGES:/data:ro -v retort-out:/out retort \
#     cache-teacher beitv2-base-imagenet --data /data/train --out /out/cache
#   docker run --gpus all --shm-size 8g ... --entrypoint torchrun retort \
#     --standalone --nproc-per-node=gpu --shutdown-timeout=280 -m cli cache-teacher ...
#   docker stop --time 300 ...                           # saves, and the same command continues
# The CUDA libraries come with torch's wheels; the base brings what the driver looks for.
ARG CUDA_IMAGE=nvidia/cuda:13.1.1-base-ubuntu24.04

FROM ${CUDA_IMAGE}
# torch.compile asks for a C compiler and Python's headers at run time
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY requirements/train.txt /tmp/train.txt
RUN python3 -m venv /opt/retort \
 && /opt/retort/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r /tmp/train.txt
COPY . /app
# a named volume takes its owner from the folder that it is mounted on
RUN /opt/retort/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation /app \
 && useradd --uid 10001 --user-group --create-home retort \
 && install --directory --owner=retort --group=retort /data /out /home/retort/.cache
ENV PATH=/opt/retort/bin:${PATH} \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
WORKDIR /out
USER 10001:10001
# a first SIGTERM finishes the block or step and saves; the same command continues
STOPSIGNAL SIGTERM
ENTRYPOINT ["retort"]
CMD ["--help"]
