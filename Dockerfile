# emcid_jax in a container; see launch/README.md.
#
#   docker build --build-arg EXTRA=cuda --tag emcid_jax .
#   docker run --rm --gpus all --volume "$PWD:/work" --user "$(id -u)" emcid_jax --config=quickstart
FROM python:3.12-slim

# tpu or cuda; empty: for the CPU alone. More with commas: tpu,tfds.
ARG EXTRA=""

# Anybody may be the user, for the files in /work are to belong to whoever runs this.
ENV HOME=/home/emcid PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home emcid \
    && mkdir /work \
    && chown emcid /work \
    && chmod 1777 /home/emcid

WORKDIR /tmp/source
COPY . .
RUN pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}" && rm -r /tmp/source/*

USER emcid
WORKDIR /work
VOLUME /work
ENTRYPOINT ["emcid_jax"]
