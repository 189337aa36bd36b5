# One image for every service of docker-compose.yml: the installed wheel, nothing editable.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --quiet --no-deps --wheel-dir /wheels .

FROM ${BASE}
# Give an index with CPU-only builds of PyTorch to keep some gigabytes of CUDA out of the image:
# docker compose build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /
COPY --chmod=0755 docker/entrypoint /usr/local/bin/entrypoint
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --quiet --no-cache-dir --root-user-action=ignore -c /constraints.txt \
        "$(echo /wheels/quant_autotune-*.whl)[export,tasks]" \
    && useradd --system --uid 10001 --no-create-home --home-dir /tmp autotune
# The root file system is mounted read-only; what libraries cache in the home folder goes to /tmp.
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["entrypoint"]
CMD ["autotune", "--help"]
# Any other distribution that ships one of our import names would have overwritten it silently.
RUN python -c "from importlib.metadata import packages_distributions; \
owners = packages_distributions(); \
wrong = {name: owners.get(name) for name in ('autotune', 'search_spaces', 'workers', 'dashboard') \
         if set(owners.get(name, ())) != {'quant-autotune'}}; \
assert not wrong, f'these import names must belong to quant-autotune alone, but: {wrong}'"
