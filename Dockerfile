# docker build -t glscl .                                 without CUDA
# docker build -t glscl:cuda --build-arg TORCH=cu128 .    for NVIDIA GPUs: docker run --gpus all …
# docker run --rm -v "$PWD:/data" glscl extract --dataset folder --videos /data/videos
FROM python:3.12-slim
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# first and by itself: the largest layer stays when the sources change; the wheels bring their own CUDA libraries
RUN pip install torch torchvision --index-url "https://download.pytorch.org/whl/$TORCH"
COPY . /src
RUN pip install "/src[serve,index,parquet]" && rm -rf /src
ENV GLSCL_HOME=/data/glscl-data HF_HOME=/data/.huggingface PYTHONUNBUFFERED=1
WORKDIR /data
EXPOSE 8765
ENTRYPOINT ["glscl"]
CMD ["doctor"]
