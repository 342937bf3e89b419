/* The runtime of CUDA, of which torch asks only these things here: one device of compute capability 9.0 that does nothing. */
#include <string.h>
#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties

#define DOES_NOTHING(name, ...) \
    cudaError_t name(__VA_ARGS__) { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *about, int device) {
    memset(about, 0, sizeof *about);
    strcpy(about->name, "made up");
    about->major = 9;
    about->multiProcessorCount = 132;
    about->totalGlobalMem = 141ull << 30;
    about->warpSize = 32;
    about->maxThreadsPerBlock = 1024;
    about->maxThreadsPerMultiProcessor = 2048;
    about->sharedMemPerBlock = 49152;
    about->sharedMemPerMultiprocessor = 233472;
    about->sharedMemPerBlockOptin = 232448;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr asked, int device) {
    *value = asked == cudaDevAttrComputeCapabilityMajor ? 9 : asked == cudaDevAttrComputeCapabilityMinor ? 0 : 1;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = 140ull << 30;
    *total = 141ull << 30;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = (cudaStream_t)1;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = (cudaEvent_t)1;
    return cudaSuccess;
}

DOES_NOTHING(cudaSetDevice, int device)
DOES_NOTHING(cudaStreamQuery, cudaStream_t stream)
DOES_NOTHING(cudaStreamSynchronize, cudaStream_t stream)
DOES_NOTHING(cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned flags)
DOES_NOTHING(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
DOES_NOTHING(cudaEventDestroy, cudaEvent_t event)
DOES_NOTHING(cudaEventQuery, cudaEvent_t event)
DOES_NOTHING(cudaEventSynchronize, cudaEvent_t event)
DOES_NOTHING(cudaDeviceSynchronize, void)
DOES_NOTHING(cudaGetLastError, void)
DOES_NOTHING(cudaPeekAtLastError, void)
