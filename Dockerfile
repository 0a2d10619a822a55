# ssl3d on one machine's NVIDIA GPUs: docs/installing.md
#   docker build --tag ssl3d .
#   docker run --gpus all --shm-size=8g --user "$(id -u):$(id -g)" --volume "$PWD:/work" ssl3d doctor
FROM python:3.12.8-slim-bookworm AS build
COPY . /source
WORKDIR /source
RUN python -m venv /opt/ssl3d \
    && /opt/ssl3d/bin/pip install --no-cache-dir --constraint constraints.txt '.[s3,minc,tensorboard,onnx,sweep]'

FROM python:3.12.8-slim-bookworm
COPY --from=build /opt/ssl3d /opt/ssl3d
RUN useradd --create-home --uid 1000 ssl3d && install -d -m 1777 /work /home/ssl3d
USER ssl3d
WORKDIR /work
ENV PATH=/opt/ssl3d/bin:$PATH HOME=/home/ssl3d MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["ssl3d"]
CMD ["--help"]
