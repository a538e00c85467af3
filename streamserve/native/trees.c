/* Tree ensembles as an operator of ONNX Runtime, which runs a model as ever, but for its trees: forest.h scores those.
 *
 * adapters/onnx_trees.py decides which models are taken, and holds their answers against the runtime's own.
 * Of the runtime's C interface (onnxruntime_c_api.h, version 16) what is used is declared here: functions by their
 * places in its table, which never change from one version to the next.
 */
#include "forest.h"

#include <stdio.h>

enum { API_VERSION = 16 };
enum { CREATE_STATUS = 0, CREATE_DOMAIN = 26, ADD_OPERATOR = 27, ADD_DOMAIN = 28, TENSOR_DATA = 51 };
enum { DIMENSION_COUNT = 61, DIMENSIONS = 62, TENSOR_SHAPE = 65, INPUT = 90, OUTPUT = 91, RELEASE_SHAPE = 99 };
enum { FLOAT = 1, INT64 = 7 };           /* types of tensors */
enum { FAIL = 1, INVALID_ARGUMENT = 2 }; /* codes of errors */
typedef void *const *api; /* OrtApi: a table of functions */
typedef void *status;     /* OrtStatus *; NULL: all is well */
#define CALL(of, place, result, ...) ((result(*)(__VA_ARGS__))(of)[place])

typedef struct operator operator;
struct operator { /* OrtCustomOp up to version 16, and what it is about */
    uint32_t version;
    void *(*create)(const operator *, api, const void *);
    const char *(*name)(const operator *);
    const char *(*provider)(const operator *);
    int (*input_type)(const operator *, size_t);
    size_t (*input_count)(const operator *);
    int (*output_type)(const operator *, size_t);
    size_t (*output_count)(const operator *);
    void (*compute)(void *, void *);
    void (*destroy)(void *);
    int (*input_characteristic)(const operator *, size_t);
    int (*output_characteristic)(const operator *, size_t);
    int (*input_memory)(const operator *, size_t);
    void *variadic[4];
    status (*create_v2)(const operator *, api, const void *, void **);
    status (*compute_v2)(void *, void *);
    void *later[8];
    char called[16];
    int32_t kind;
    forest *of; /* NULL once it is closed */
};

typedef struct {
    api api;
    forest *of;
} kernel;

static status failed(api of, int code, const char *text) {
    return CALL(of, CREATE_STATUS, status, int, const char *)(code, text);
}

static status shape_of(api of, const void *value, int64_t *rows, int64_t *width) {
    void *shape = NULL;
    size_t rank = 0;
    int64_t sizes[2] = {1, 0};
    status bad = CALL(of, TENSOR_SHAPE, status, const void *, void **)(value, &shape);
    if (bad) return bad;
    bad = CALL(of, DIMENSION_COUNT, status, const void *, size_t *)(shape, &rank);
    if (!bad && rank != 2) bad = failed(of, INVALID_ARGUMENT, "trees take rows of features");
    if (!bad) bad = CALL(of, DIMENSIONS, status, const void *, int64_t *, size_t)(shape, sizes, rank);
    CALL(of, RELEASE_SHAPE, void, void *)(shape);
    *rows = sizes[0], *width = sizes[1];
    return bad;
}

static status output(api of, void *context, size_t index, const int64_t *sizes, size_t rank, void *data) {
    void *value = NULL;
    status (*get)(void *, size_t, const int64_t *, size_t, void **) = of[OUTPUT];
    status bad = get(context, index, sizes, rank, &value);
    return bad ? bad : CALL(of, TENSOR_DATA, status, void *, void **)(value, data);
}

static status compute(void *given, void *context) {
    const kernel *self = given;
    const forest *of = self->of;
    const void *value = NULL;
    const float *rows = NULL;
    float *out = NULL;
    int64_t count, width, *labels = NULL;
    status bad = CALL(self->api, INPUT, status, const void *, size_t, const void **)(context, 0, &value);
    if (bad || (bad = shape_of(self->api, value, &count, &width))) return bad;
    if (width < of->feature_count) return failed(self->api, INVALID_ARGUMENT, "trees ask for a feature that rows lack");
    int64_t sizes[2] = {count, of->kind == BINARY ? 2 : of->score_count};
    if ((bad = CALL(self->api, TENSOR_DATA, status, const void *, const void *)(value, &rows))) return bad;
    if (of->kind != REGRESSION && (bad = output(self->api, context, 0, sizes, 1, &labels))) return bad;
    if ((bad = output(self->api, context, of->kind != REGRESSION, sizes, 2, &out))) return bad;
    if (!score(of, rows, count, width, out, labels)) return failed(self->api, FAIL, NO_MEMORY);
    return NULL;
}

static status create(const operator *self, api api, const void *info, void **made) {
    (void)info;
    if (!self->of) return failed(api, FAIL, "these trees are closed");
    kernel *one = malloc(sizeof(kernel));
    if (!one) return failed(api, FAIL, NO_MEMORY);
    __atomic_add_fetch(&self->of->references, 1, __ATOMIC_ACQ_REL);
    *one = (kernel){api, self->of};
    *made = one;
    return NULL;
}

static void destroy(void *given) {
    forest_drop(((kernel *)given)->of);
    free(given);
}

static const char *name(const operator *self) { return self->called; }
static const char *provider(const operator *self) { return (void)self, NULL; }
static int input_type(const operator *self, size_t i) { return (void)self, (void)i, FLOAT; }
static size_t input_count(const operator *self) { return (void)self, 1; }
static int output_type(const operator *self, size_t i) { return self->kind != REGRESSION && !i ? INT64 : FLOAT; }
static size_t output_count(const operator *self) { return self->kind == REGRESSION ? 1 : 2; }
static int zero(const operator *self, size_t i) { return (void)self, (void)i, 0; }

static __thread operator *const *offered;
static __thread int32_t offered_count;

/* The runtime calls this when a library of operators is registered, in the thread that offers them. Their domain
 * stays, as they do. */
status RegisterCustomOps(void *options, const void *base) {
    api of = (*(api(*const *)(uint32_t))base)(API_VERSION);
    void *domain = NULL;
    status bad = of ? CALL(of, CREATE_DOMAIN, status, const char *, void **)("streamserve", &domain) : NULL;
    for (int32_t i = 0; of && !bad && i < offered_count; i++)
        bad = CALL(of, ADD_OPERATOR, status, void *, const operator *)(domain, offered[i]);
    offered_count = 0;
    return !of || bad ? bad : CALL(of, ADD_DOMAIN, status, void *, void *)(options, domain);
}

/* For the next registration of this thread. */
void operators_offer(operator *const *operators, int32_t count) { offered = operators, offered_count = count; }

/* NULL, with what is the matter, where these trees are none that are known here. */
operator *operator_new(const ensemble *given, int32_t number, const char **problem) {
    operator *made = calloc(1, sizeof(operator));
    builder b = {.of = given, .made = calloc(1, sizeof(forest))};
    if (b.made) b.made->references = 1;
    if (!made || !b.made) {
        fail(&b, NO_MEMORY);
    } else {
        build(&b);
    }
    free(b.runs), free(b.at), free(b.weight), free(b.seen), free(b.tests), free(b.features);
    *problem = b.problem;
    if (b.problem) {
        forest_drop(b.made), free(made);
        return NULL;
    }
    *made = (operator){
        .version = API_VERSION, .name = name, .provider = provider, .input_type = input_type,
        .input_count = input_count, .output_type = output_type, .output_count = output_count, .destroy = destroy,
        .input_characteristic = zero, .output_characteristic = zero, .input_memory = zero, .create_v2 = create,
        .compute_v2 = compute, .kind = b.made->kind, .of = b.made,
    };
    snprintf(made->called, sizeof(made->called), "Trees%d", number);
    return made;
}

/* No more sessions with these trees; those that there are keep them. What is left of the operator and its domain, 500
 * bytes, stays: a session may look at it for as long as it lives. */
void operator_close(operator *of) {
    forest_drop(of->of);
    of->of = NULL;
}
