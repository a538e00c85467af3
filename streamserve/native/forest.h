/* Forests: what ONNX Runtime's TreeEnsembleClassifier and TreeEnsembleRegressor say of float rows, bit for bit, in a
 * fraction of the time. Those walk a row through a tree at a time, and half of the branches are guessed wrongly. Here
 * no path is walked: each tree has a word with a bit for each leaf, every test that a row fails takes away the leaves
 * that it would have led to, and the first bit that is left is the leaf. The tests of all trees lie in the order of
 * feature and threshold, so that those that a row passes are not even looked at, and several rows go at once:
 * QuickScorer (Lucchese et al., SIGIR 2015), with lanes as in V-QuickScorer (SIGIR 2016). Larger trees have more words.
 *
 * Sums are taken in the order of the trees, a float at a time, as the runtime takes them. Values are compared as
 * integers of the same order, so that it makes no difference how a thread treats the smallest of floats. Trusted are
 * pointers, sizes, and that kind, transform, labels and scores fit together; what the arrays of nodes and weights hold
 * is not.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WORD = 32, MOST_LEAVES = 256, MOST_NODES = 1 << 24, MOST_FEATURES = 1 << 16 };
enum { LEAF, LEQ, LT, GTE, GT };      /* of a node */
enum { REGRESSION, BINARY, CLASSES }; /* kinds of ensembles */
enum { NONE, LOGISTIC, SOFTMAX };     /* what becomes of the sums */

/* nodes: as in the operators' attributes, each array [node_count]. weights: of leaves, [weight_count]. */
typedef struct {
    int64_t node_count, weight_count;
    const int64_t *tree_ids, *node_ids, *features, *true_ids, *false_ids;
    const float *values;
    const uint8_t *modes, *missing_true;
    const int64_t *weight_trees, *weight_nodes, *weight_scores;
    const float *weights;
    const float *bases;    /* [score_count] */
    const int64_t *labels; /* [label_count] */
    int32_t label_count, score_count, kind, transform, average;
} ensemble;

/* A row passes when its key is below the bound; if it fails, only `others` of the leaves stay within reach. place:
 * twice the word of its tree, and 1 if a value that is missing passes. */
typedef struct {
    int32_t bound, others;
    uint32_t place;
} test;

typedef struct {
    int32_t word, leaf, score; /* its first word, its first leaf, and the sum that its leaves add to */
} tree;

typedef struct forest {
    int32_t feature_count, tree_count, word_count, score_count, kind, transform, positive, references;
    float divisor;
    test *tests;
    int32_t *ends; /* [feature_count], of the tests of each feature */
    tree *trees;
    float *leaves, *bases;
    int64_t *labels;
} forest;

enum { MISSING = INT32_MAX, INFINITE = 0x7f800000 };

/* An integer that is above another if its float is; 0 and -0 are the same, and what is no number is MISSING. */
static int32_t key_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return value != value ? MISSING : bits == INT32_MIN ? 0 : bits ^ (bits >> 31 & MISSING);
}

typedef void rows_function(const forest *, const float *, int64_t, int64_t, float *, void *);

#define LANES 4
#define ROWS rows_any
#define TARGET
#include "forest_rows.h"
#undef LANES
#undef ROWS
#undef TARGET
#if defined(__x86_64__)
#define LANES 8
#define ROWS rows_avx2
#define TARGET __attribute__((target("avx2,bmi")))
#include "forest_rows.h"
#undef LANES
#undef ROWS
#undef TARGET
#define LANES 16
#define ROWS rows_avx512
#define TARGET __attribute__((target("avx512f,bmi,prefer-vector-width=512")))
#include "forest_rows.h"
#endif

static int32_t most_lanes = 16;

void use_lanes(int32_t most) { most_lanes = most; } /* for tests: all ways give the same bits */

static int32_t lanes_here(void) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("bmi")) return 4;
    if (most_lanes >= 16 && __builtin_cpu_supports("avx512f")) return 16;
    if (most_lanes >= 8 && __builtin_cpu_supports("avx2")) return 8;
#endif
    return 4;
}

static rows_function *rows_here(void) {
#if defined(__x86_64__)
    if (lanes_here() == 16) return rows_avx512;
    if (lanes_here() == 8) return rows_avx2;
#endif
    return rows_any;
}

static const char NO_MEMORY[] = "there is no memory";

typedef struct {
    int64_t first, size;
} run; /* of the nodes of a tree, which lie together */

typedef struct {
    const ensemble *of;
    forest *made;
    run tree;        /* the one at hand */
    run *runs;       /* by the tree's number */
    int64_t *at;     /* [node_count]: from a run's first on, its nodes by their numbers; -1: there is none */
    int64_t *weight; /* [node_count]: which weight a node has; -1: none */
    uint8_t *seen;
    int64_t test_count, test_room;
    test *tests;
    int32_t *features; /* of the tests */
    int32_t leaf_count;
    const char *problem;
} builder;

static int32_t fail(builder *b, const char *problem) {
    if (!b->problem) b->problem = problem;
    return -1;
}

/* The leaves from `first` up to `end` are out of reach of whoever fails the test. */
static int32_t add_tests(builder *b, int32_t feature, int32_t bound, int missing_passes, int32_t first, int32_t end) {
    for (int32_t word = first / WORD; word <= (end - 1) / WORD; word++) {
        int32_t from = first > word * WORD ? first - word * WORD : 0;
        int32_t to = end < (word + 1) * WORD ? end - word * WORD : WORD;
        if (b->test_count == b->test_room) {
            b->test_room = b->test_room * 2 + 1024;
            test *tests = realloc(b->tests, (size_t)b->test_room * sizeof(test));
            if (tests) b->tests = tests;
            int32_t *features = realloc(b->features, (size_t)b->test_room * sizeof(int32_t));
            if (features) b->features = features;
            if (!tests || !features) return fail(b, NO_MEMORY);
        }
        uint32_t gone = (uint32_t)((1ull << to) - (1ull << from));
        uint32_t place = (uint32_t)(b->made->word_count + word) * 2 + (uint32_t)missing_passes;
        b->features[b->test_count] = feature;
        b->tests[b->test_count++] = (test){bound, (int32_t)~gone, place};
    }
    return 0;
}

/* Returns the number of the next leaf, when `leaf` is that of the first one below this node; -1: there is a problem. */
static int32_t plant(builder *b, int64_t id, int32_t leaf) {
    const ensemble *of = b->of;
    int64_t node = id < 0 || id >= b->tree.size ? -1 : b->at[b->tree.first + id];
    if (node < 0) return fail(b, "a node is missing");
    if (b->seen[node]++) return fail(b, "a node is reached in two ways");
    if (of->modes[node] == LEAF) {
        tree *here = b->made->trees + b->made->tree_count;
        int64_t weight = b->weight[node], score = weight < 0 ? -1 : of->weight_scores[weight];
        if (leaf == MOST_LEAVES) return fail(b, "a tree has too many leaves");
        if (score < 0 || score >= of->score_count) return fail(b, "a leaf has no weight");
        if (leaf && score != here->score) return fail(b, "the leaves of a tree add to several scores");
        if (!isfinite(of->weights[weight])) return fail(b, "a weight is not finite"); /* a NaN may have any sign */
        here->score = (int32_t)score;
        b->made->leaves[b->leaf_count++] = of->weights[weight];
        return leaf + 1;
    }
    int above = of->modes[node] == GT || of->modes[node] == GTE; /* told by their contraries */
    int strict = of->modes[node] == LT || of->modes[node] == GTE;
    int32_t bound = key_of(of->values[node]);
    if (bound == MISSING) return fail(b, "a threshold is no number");
    if (of->features[node] < 0 || of->features[node] >= MOST_FEATURES) return fail(b, "there are too many features");
    int32_t middle = plant(b, above ? of->false_ids[node] : of->true_ids[node], leaf);
    int32_t end = middle < 0 ? -1 : plant(b, above ? of->true_ids[node] : of->false_ids[node], middle);
    int passes = (of->missing_true[node] != 0) != above;
    if (end < 0 || add_tests(b, (int32_t)of->features[node], bound + !strict, passes, leaf, middle) < 0) return -1;
    return end;
}

static int64_t node_of(const builder *b, int64_t tree_id, int64_t id) {
    if (tree_id < 0 || tree_id >= b->of->node_count || id < 0 || id >= b->runs[tree_id].size) return -1;
    return b->at[b->runs[tree_id].first + id];
}

static int32_t find_nodes(builder *b) {
    const ensemble *of = b->of;
    for (int64_t node = 0; node < of->node_count; node++) b->at[node] = b->weight[node] = -1;
    for (int64_t node = 0; node < of->node_count; node++) {
        int64_t id = of->tree_ids[node];
        if (id < 0 || id >= of->node_count) return fail(b, "trees aren't numbered");
        run *here = b->runs + id;
        if (!here->size) here->first = node;
        if (here->first + here->size++ != node) return fail(b, "the nodes of a tree don't lie together");
    }
    for (int64_t node = 0; node < of->node_count; node++) {
        const run *here = b->runs + of->tree_ids[node];
        int64_t id = of->node_ids[node];
        if (id < 0 || id >= here->size || b->at[here->first + id] >= 0) return fail(b, "nodes aren't numbered");
        b->at[here->first + id] = node;
    }
    for (int64_t i = 0; i < of->weight_count; i++) {
        int64_t node = node_of(b, of->weight_trees[i], of->weight_nodes[i]);
        if (node < 0 || of->modes[node] != LEAF) return fail(b, "a weight is of no leaf");
        if (b->weight[node] >= 0) return fail(b, "a leaf has several weights");
        b->weight[node] = i;
    }
    return 0;
}

static int32_t plant_all(builder *b) {
    const ensemble *of = b->of;
    forest *made = b->made;
    int64_t planted = 0;
    for (int64_t first = 0; first < of->node_count; first += b->tree.size) {
        b->tree = b->runs[of->tree_ids[first]];
        if (b->tree.size >= 2 * MOST_LEAVES) return fail(b, "a tree has too many leaves");
        made->trees[made->tree_count] = (tree){made->word_count, b->leaf_count, 0};
        int32_t leaves = plant(b, of->node_ids[first], 0);
        if (leaves < 0) return -1;
        planted += 2 * leaves - 1;
        made->word_count += (leaves + WORD - 1) / WORD;
        made->tree_count++;
    }
    if (planted != of->node_count) return fail(b, "a node is out of reach");
    /* Work grows with the leaves here, and with their logarithm in the runtime. Measured, 200 trees of 31, 64, 128 and
     * 255 leaves: 3.9, 4.5, 5.5 and 6.3 us a row there; here 1.0, 2.1, 3.5, 6.5 with 16 lanes, 1.3, 2.8, 4.4, 9 with 8,
     * and 2.2, 4.2, 7.3, 14 with 4. */
    return b->leaf_count <= made->tree_count * 8 * lanes_here() ? 0 : fail(b, "the trees are too large to gain by it");
}

static int by_threshold(const void *a, const void *b) {
    int32_t left = ((const test *)a)->bound, right = ((const test *)b)->bound;
    return (left > right) - (left < right);
}

/* The tests in the order of feature and threshold. */
static int32_t sort_tests(builder *b) {
    forest *made = b->made;
    for (int64_t i = 0; i < b->test_count; i++)
        if (b->features[i] >= made->feature_count) made->feature_count = b->features[i] + 1;
    made->tests = malloc((size_t)b->test_count * sizeof(test) + 1);
    made->ends = calloc((size_t)made->feature_count + 1, sizeof(int32_t));
    if (!made->tests || !made->ends) return fail(b, NO_MEMORY);
    for (int64_t i = 0; i < b->test_count; i++) made->ends[b->features[i] + 1]++;
    for (int32_t f = 0; f < made->feature_count; f++) made->ends[f + 1] += made->ends[f];
    for (int64_t i = 0; i < b->test_count; i++) made->tests[made->ends[b->features[i]]++] = b->tests[i];
    for (int32_t f = 0; f < made->feature_count; f++) {
        int32_t first = f ? made->ends[f - 1] : 0;
        qsort(made->tests + first, (size_t)(made->ends[f] - first), sizeof(test), by_threshold);
    }
    return 0;
}

static int32_t build(builder *b) {
    const ensemble *of = b->of;
    forest *made = b->made;
    size_t nodes = (size_t)of->node_count;
    if (of->node_count < 1 || of->node_count >= MOST_NODES) return fail(b, "there are too many nodes, or none");
    b->runs = calloc(nodes, sizeof(run));
    b->at = malloc(nodes * sizeof(int64_t));
    b->weight = malloc(nodes * sizeof(int64_t));
    b->seen = calloc(nodes, 1);
    made->trees = malloc(nodes * sizeof(tree));
    made->leaves = malloc(nodes * sizeof(float));
    made->bases = malloc((size_t)of->score_count * sizeof(float));
    made->labels = malloc(((size_t)of->label_count + 1) * sizeof(int64_t));
    if (!b->runs || !b->at || !b->weight || !b->seen) return fail(b, NO_MEMORY);
    if (!made->trees || !made->leaves || !made->bases || !made->labels) return fail(b, NO_MEMORY);
    if (find_nodes(b) < 0 || plant_all(b) < 0 || sort_tests(b) < 0) return -1;
    for (int32_t i = 0; i < of->score_count; i++)
        if (!isfinite(of->bases[i])) return fail(b, "a base value is not finite");
    memcpy(made->bases, of->bases, (size_t)of->score_count * sizeof(float));
    memcpy(made->labels, of->labels, (size_t)of->label_count * sizeof(int64_t));
    made->score_count = of->score_count, made->kind = of->kind, made->transform = of->transform;
    made->divisor = of->average ? (float)made->tree_count : 1;
    made->positive = 1;
    for (int64_t i = 0; i < of->weight_count; i++) made->positive &= !(of->weights[i] < 0);
    return 0;
}

static void forest_drop(forest *of) {
    if (!of || __atomic_sub_fetch(&of->references, 1, __ATOMIC_ACQ_REL)) return;
    free(of->tests), free(of->ends), free(of->trees), free(of->leaves), free(of->bases), free(of->labels);
    free(of);
}

/* ---- what the runtime's operators make of the sums */

static float logistic(float x) {
    float y = 1.0f / (1.0f + expf(-fabsf(x)));
    return x < 0 ? 1.0f - y : y;
}

static void tell_two(const forest *of, float sum, float *out, int64_t *label) {
    int yes = of->positive ? sum > 0.5f : sum > 0;
    *label = of->labels[yes];
    if (of->transform == LOGISTIC) {
        out[0] = logistic(-sum), out[1] = logistic(sum);
    } else {
        out[0] = of->positive ? 1.0f - sum : -sum, out[1] = sum;
    }
}

static void tell_classes(const forest *of, float *scores, int64_t *label) {
    int32_t best = 0, count = of->score_count;
    for (int32_t i = 0; i < count; i++) scores[i] += of->bases[i];
    for (int32_t i = 1; i < count; i++)
        if (scores[i] > scores[best]) best = i;
    *label = of->labels[best];
    if (of->transform == LOGISTIC) {
        for (int32_t i = 0; i < count; i++) scores[i] = logistic(scores[i]);
    } else if (of->transform == SOFTMAX) {
        float most = -FLT_MAX, total = 0;
        for (int32_t i = 0; i < count; i++) most = scores[i] > most ? scores[i] : most;
        for (int32_t i = 0; i < count; i++) total += scores[i] = expf(scores[i] - most);
        for (int32_t i = 0; i < count; i++) scores[i] /= total;
    }
}

/* out: [count][scores], of two classes both. labels: [count], of classes. Returns 0 where there is no memory. */
static int score(const forest *of, const float *rows, int64_t count, int64_t width, float *out, int64_t *labels) {
    void *memory = aligned_alloc(64, 64 * (size_t)(of->word_count + of->score_count));
    if (!memory) return 0;
    float *sums = of->kind == BINARY ? out + count : out; /* and from there spread over all of it */
    rows_here()(of, rows, count, width, sums, memory);
    free(memory);
    for (int64_t row = 0; row < count; row++) {
        if (of->kind == REGRESSION) out[row] = sums[row] / of->divisor + *of->bases;
        if (of->kind == BINARY) tell_two(of, sums[row] + *of->bases, out + 2 * row, labels + row);
        if (of->kind == CLASSES) tell_classes(of, out + row * of->score_count, labels + row);
    }
    return 1;
}
