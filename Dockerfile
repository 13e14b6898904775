# Two images from one file. `serve` scores over HTTP: no torchrec, no compiler. `train` runs the offline jobs, the
# compiler of `python -m training compile` and the load test. docs/deployment.md says how each is built and run.
#
#   docker build --target serve -t feedrank-serve .        (or `make image`, which fills in version and commit)
#
# Which torch: requirements/install_torch.py takes the CPU build from PyTorch's own index, or from TORCH_INDEX, or from a
# folder of wheels in PIP_FIND_LINKS, DEVICE=gpu the CUDA build and its libraries. Other packages come from pip's index,
# and from PIP_EXTRA_INDEX_URL. Both stages end by importing what they installed.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BASE_IMAGE} AS base
# Python as the first process handles SIGTERM itself, so no init stands before it. /tmp is the only place written to.
# A random uid has no name and no home, which some libraries ask for.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=feedrank \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /app
# pip of the base image installs into it, so that what is served has neither pip nor setuptools.
RUN python -m venv --without-pip /opt/venv

# ----------------------------------------------------------------------------------------------------------- serve
FROM base AS serve
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ARG TORCH_INDEX
ARG DEVICE=cpu
COPY requirements/serve.txt requirements/torch-gpu.txt requirements/install_torch.py requirements/
# torch in a layer of its own: it is most of the image and changes least. Headers, its own tests and the compiler of
# protocol buffers are for building against it, and go in the same layer or they would still be shipped.
RUN PIP_NO_CACHE_DIR=1 python requirements/install_torch.py --device "$DEVICE" --index "$TORCH_INDEX" \
    && cd /opt/venv/lib/python3*/site-packages/torch \
    && rm -rf include share/cmake test bin/test_* bin/*Test bin/protoc* lib/*_test.so
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps -r requirements/serve.txt \
    && python requirements/install_torch.py --check torch
COPY model model
COPY service service
RUN python -m compileall -q model service && mkdir /logs && mkdir -m 1777 /models /logs/impressions /logs/events /secrets /state
ENV FEEDRANK_MODELS=/models FEEDRANK_HOST=0.0.0.0
EXPOSE 8080
# Any other uid will do as well.
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "service", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "service"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="feedrank serve" \
      org.opencontainers.image.description="Ranks the candidates of a feed over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# ----------------------------------------------------------------------------------------------------------- train
FROM base AS train
# The compiler is what torch calls to make a compiled package. Its OpenMP is LightGBM's as well.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/log/apt /var/log/dpkg.log
ARG PIP_FIND_LINKS
ARG PIP_EXTRA_INDEX_URL
ARG TORCH_INDEX
ARG DEVICE=cpu
COPY requirements/serve.txt requirements/train.txt requirements/torch-gpu.txt requirements/fbgemm-cpu.txt \
     requirements/fbgemm-gpu.txt requirements/install_torch.py requirements/
RUN PIP_NO_CACHE_DIR=1 python requirements/install_torch.py --device "$DEVICE" --index "$TORCH_INDEX"
# fbgemm's CUDA build imports beside a GPU's driver alone, which a build does not have.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
        -r requirements/train.txt -r "requirements/fbgemm-$DEVICE.txt" \
    && python requirements/install_torch.py --check torch $([ "$DEVICE" = gpu ] || echo fbgemm_gpu torchrec)
COPY configs configs
COPY model model
COPY service service
COPY training training
COPY deploy/*.py deploy/
# Jobs name their files from here: data/, runs/, logs/ and /models are where volumes go.
RUN python -m compileall -q model service training deploy && mkdir logs && mkdir -m 1777 data runs logs/impressions logs/events /models
USER 10001:10001
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="feedrank train" \
      org.opencontainers.image.description="Trains, exports and publishes rankers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
