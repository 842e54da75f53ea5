# Discreet in a container: one image for coordinator, organisation and witness; the command says which.
#   docker build -t discreet . && docker run --rm -v "$PWD/north:/home/discreet" discreet join --policy policy.toml
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE discreet.py ./
COPY client client
COPY common common
COPY server server
COPY simulations simulations
RUN python -m venv /opt/discreet \
    && /opt/discreet/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM python:3.12-slim-bookworm
COPY --from=build /opt/discreet /opt/discreet
RUN useradd --create-home --uid 10001 discreet
USER 10001
WORKDIR /home/discreet
ENV PATH=/opt/discreet/bin:$PATH PYTHONUNBUFFERED=1
# SIGTERM, which containers are stopped with, ends every command cleanly.
STOPSIGNAL SIGTERM
ENTRYPOINT ["discreet"]
CMD ["--help"]
