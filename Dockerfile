# Reposer on a CPU: docker build -t reposer . && docker run --rm -v "$PWD:/work" reposer demo --out demo
FROM python:3.12-slim

# PyTorch without CUDA's libraries: 5 GB less. The versions are those of constraints.txt, as far as it has them.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/reposer
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN grep -v -E '^(torch|torchvision|triton|nvidia-|cuda-)' constraints.txt > cpu.txt \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir -c cpu.txt '.[annotate,onnx,serve]' \
    && rm -rf /opt/reposer/src cpu.txt

# Nobody's files are written as root; name another user with --user.
RUN useradd --create-home people
USER people
WORKDIR /work
# For `serve`: docker run -p 127.0.0.1:8765:8765 ... reposer serve --host 0.0.0.0 shows it to this machine alone.
EXPOSE 8765
ENTRYPOINT ["reposer"]
CMD ["--help"]
