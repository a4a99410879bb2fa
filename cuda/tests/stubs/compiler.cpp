// An NVRTC whose version is STUB_NVRTC (13.0 if unsaid), and which makes the text STUB_IMAGE of any program.
#include <cstdio>
#include <cstdlib>
#include <cstring>

static const char* image() {
    const char* text = getenv("STUB_IMAGE");
    return text ? text : "";
}

extern "C" {
int nvrtcVersion(int* major, int* minor) {
    const char* text = getenv("STUB_NVRTC");
    *major = 13, *minor = 0;
    if (text) sscanf(text, "%d.%d", major, minor);
    return 0;
}
int nvrtcCreateProgram(void** program, const char*, const char*, int, const char**, const char**) {
    *program = malloc(1);
    return 0;
}
int nvrtcCompileProgram(void*, int count, const char** options) {
    printf("compiled with %s\n", options[count - 1]);
    fflush(stdout);
    return 0;
}
int nvrtcDestroyProgram(void** program) {
    free(*program);
    return 0;
}
int nvrtcGetProgramLogSize(void*, size_t* bytes) {
    *bytes = 1;
    return 0;
}
int nvrtcGetProgramLog(void*, char* log) {
    *log = 0;
    return 0;
}
int nvrtcGetCUBINSize(void*, size_t* bytes) {
    *bytes = strlen(image()) + 1;
    return 0;
}
int nvrtcGetCUBIN(void*, char* to) {
    strcpy(to, image());
    return 0;
}
}
