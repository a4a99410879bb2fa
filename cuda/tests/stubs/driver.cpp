// A driver for CUDA 13.0 with one device that has no kernel: enough to see what is loaded. It says so in lines of its own.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define FUNCTION(name, parameters, ...)                                                                                \
    extern "C" int name parameters {                                                                                   \
        __VA_ARGS__;                                                                                                   \
        return 0;                                                                                                      \
    }
#define NOTHING(name) FUNCTION(name, ())

static int capability() {
    const char* text = getenv("STUB_CAPABILITY");
    return text ? atoi(text) : 90;
}

FUNCTION(cuDriverGetVersion, (int* version), *version = 13000)
FUNCTION(cuDeviceGetCount, (int* count), *count = 1)
FUNCTION(cuDeviceGet, (int* device, int), *device = 0)
FUNCTION(cuDeviceGetName, (char* name, int bytes, int), snprintf(name, bytes, "a stub"))
FUNCTION(cuDeviceTotalMem_v2, (size_t * bytes, int), *bytes = 1 << 30)
// 75 and 76 are the two numbers of the compute capability.
FUNCTION(cuDeviceGetAttribute, (int* value, int attribute, int),
         *value = attribute == 75 ? capability() / 10 : attribute == 76 ? capability() % 10 : 1)
FUNCTION(cuDevicePrimaryCtxRetain, (void** context, int), *context = malloc(1))
FUNCTION(cuStreamCreate, (void** stream, unsigned), *stream = malloc(1))
FUNCTION(cuEventCreate, (void** event, unsigned), *event = malloc(1))
FUNCTION(cuMemAlloc_v2, (void** memory, size_t bytes), *memory = malloc(bytes))
FUNCTION(cuMemHostAlloc, (void** memory, size_t bytes, unsigned), *memory = malloc(bytes))
FUNCTION(cuGetErrorName, (int, const char** text), *text = "CUDA_ERROR_NOT_FOUND")
FUNCTION(cuGetErrorString, (int, const char** text), *text = "named symbol not found")
FUNCTION(cuModuleLoadData, (void** module, const void* image), *module = malloc(1); printf("loaded %s\n", (const char*)image);
         fflush(stdout))
extern "C" int cuModuleGetFunction(void**, void*, const char*) { return 500; }

NOTHING(cuCtxEnablePeerAccess)
NOTHING(cuCtxSetCurrent)
NOTHING(cuDeviceCanAccessPeer)
NOTHING(cuEventDestroy_v2)
NOTHING(cuEventRecord)
NOTHING(cuEventSynchronize)
NOTHING(cuFuncGetAttribute)
NOTHING(cuFuncGetParamInfo)
NOTHING(cuFuncSetAttribute)
NOTHING(cuGraphDestroy)
NOTHING(cuGraphExecDestroy)
NOTHING(cuGraphGetNodes)
NOTHING(cuGraphInstantiateWithFlags)
NOTHING(cuGraphLaunch)
NOTHING(cuInit)
NOTHING(cuLaunchKernel)
NOTHING(cuMemAllocAsync)
NOTHING(cuMemFreeAsync)
NOTHING(cuMemFreeHost)
NOTHING(cuMemFree_v2)
NOTHING(cuMemGetInfo_v2)
NOTHING(cuMemcpyDtoDAsync_v2)
NOTHING(cuMemcpyDtoHAsync_v2)
NOTHING(cuMemcpyHtoDAsync_v2)
NOTHING(cuMemcpyPeerAsync)
NOTHING(cuMemsetD8Async)
NOTHING(cuStreamBeginCapture_v2)
NOTHING(cuStreamEndCapture)
NOTHING(cuStreamSynchronize)
NOTHING(cuStreamWaitEvent)
