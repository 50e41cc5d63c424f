// A libcuda.so.1 that runs nothing and keeps what it was told to launch last, thread by thread.
//
// Built and loaded by cuda_stub.py, for machines without a GPU: Triton's own driver and launcher
// work with it as with NVIDIA's library. A thread has no context until it sets one, as there.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
enum { kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201 };
enum { kMostParameters = 128, kMostBytes = 2048 };

typedef struct {
  uint64_t function, stream;
  uint32_t grid[3], block[3];
  uint32_t shared, attributes, bytes;
  uint8_t parameters[kMostBytes];
} Launch;

// CUlaunchConfig.
typedef struct {
  unsigned grid[3], block[3], shared;
  void* stream;
  void* attributes;
  unsigned count;
} Config;

static _Thread_local Launch last;
static _Thread_local uint64_t launches;
static _Thread_local uint32_t sizes[kMostParameters];
static _Thread_local uint32_t parameters;
static _Thread_local void* context;
static int context_storage;

uint64_t stub_launches(void) { return launches; }
const Launch* stub_last(void) { return &last; }
void stub_drop_context(void) { context = NULL; }

// The bytes of each parameter of the kernel that is launched next, of which they are kept.
void stub_expect(const uint32_t* each, uint32_t count) {
  parameters = count < kMostParameters ? count : kMostParameters;
  memcpy(sizes, each, parameters * sizeof(uint32_t));
}

static CUresult record(const unsigned* grid, const unsigned* block, unsigned shared, void* stream,
                       void* function, unsigned attributes, void** kernel_parameters) {
  if (!context) return kInvalidContext;
  ++launches;
  memset(&last, 0, sizeof last);
  last.function = (uint64_t)function;
  last.stream = (uint64_t)stream;
  memcpy(last.grid, grid, sizeof last.grid);
  memcpy(last.block, block, sizeof last.block);
  last.shared = shared;
  last.attributes = attributes;
  uint32_t at = 0;
  for (uint32_t i = 0; i < parameters; ++i) {
    at = (at + sizes[i] - 1) / sizes[i] * sizes[i];
    if (at + sizes[i] > kMostBytes) return kInvalidValue;
    memcpy(last.parameters + at, kernel_parameters[i], sizes[i]);
    at += sizes[i];
  }
  last.bytes = at;
  parameters = 0;
  return kSuccess;
}

CUresult cuLaunchKernelEx(const Config* config, void* function, void** kernel_parameters,
                          void** extra) {
  if (extra) return kInvalidValue;
  return record(config->grid, config->block, config->shared, config->stream, function,
                config->count, kernel_parameters);
}

CUresult cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        void* stream, void** kernel_parameters, void** extra) {
  if (extra) return kInvalidValue;
  const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
  return record(grid, block, shared, stream, function, 0, kernel_parameters);
}

// CU_DEVICE_ATTRIBUTE_*: compute capability 9.0, and limits that no kernel of ours reaches.
CUresult cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 10 ? 32 : 227 * 1024;
  return kSuccess;
}

CUresult cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = attribute == 0 ? 1024 : 0;  // CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
  return kSuccess;
}

CUresult cuPointerGetAttribute(void* data, int attribute, uint64_t pointer) {
  memcpy(data, &pointer, sizeof pointer);
  return kSuccess;
}

CUresult cuCtxGetCurrent(void** current) {
  *current = context;
  return kSuccess;
}

CUresult cuCtxSetCurrent(void* current) {
  context = current;
  return kSuccess;
}

CUresult cuDevicePrimaryCtxRetain(void** primary, int device) {
  *primary = &context_storage;
  return kSuccess;
}

CUresult cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return kSuccess;
}

CUresult cuModuleLoadData(void** module, const void* image) {
  *module = malloc(1);
  return kSuccess;
}

CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = malloc(1);
  return kSuccess;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == kInvalidContext ? "invalid device context" : "error of the stub";
  return kSuccess;
}

#define NOTHING(name) \
  CUresult name(void) { return kSuccess; }
NOTHING(cuInit)
CUresult cuCtxGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetLimit)
NOTHING(cuDriverGetVersion)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveClusters)
NOTHING(cuTensorMapEncodeTiled)
