/* Rows through a forest, LANES of them at once; forest.h includes it once for each instruction set. */
TARGET static void ROWS(const forest *of, const float *rows, int64_t count, int64_t width, float *sums, void *memory) {
    typedef int32_t ints __attribute__((vector_size(4 * LANES)));
    ints *reachable = memory;
    float(*total)[LANES] = (float(*)[LANES])(reachable + of->word_count);
    for (int64_t done = 0; done < count; done += LANES, rows += LANES * width, sums += LANES * of->score_count) {
        int32_t lanes = count - done < LANES ? (int32_t)(count - done) : LANES;
        memset(reachable, 0xff, sizeof(ints) * (size_t)of->word_count);
        const test *at = of->tests;
        for (int32_t f = 0; f < of->feature_count; f++) {
            const test *end = of->tests + of->ends[f];
            int32_t keys[LANES] __attribute__((aligned(4 * LANES))), largest = INT32_MIN;
            if (at == end) continue;
            for (int32_t i = 0; i < LANES; i++) memcpy(keys + i, rows + (i < lanes ? i : 0) * width + f, sizeof(float));
            ints bits = *(ints *)keys, key = (bits ^ (bits >> 31 & MISSING)) & (bits != INT32_MIN);
            ints none = (key > INFINITE) | (key < ~INFINITE);
            key = (key & ~none) | (none & MISSING);
            *(ints *)keys = key;
            for (int32_t i = 0; i < LANES; i++) largest = keys[i] > largest ? keys[i] : largest;
            if (largest == MISSING) {
                ints missing = key == MISSING;
                for (; at < end; at++)
                    reachable[at->place >> 1] &= (at->bound > key) | (missing & -(int32_t)(at->place & 1)) | at->others;
            } else {
                for (; at < end && at->bound <= largest; at++)
                    reachable[at->place >> 1] &= (at->bound > key) | at->others;
            }
            at = end;
        }
        memset(total, 0, sizeof(*total) * (size_t)of->score_count);
        for (int32_t t = 0; t < of->tree_count; t++) {
            const tree *one = of->trees + t;
            const uint32_t *words = (const uint32_t *)(reachable + one->word);
            float *sum = total[one->score];
            for (int32_t i = 0; i < LANES; i++) {
                int32_t word = 0;
                while (!words[word * LANES + i]) word++;
                sum[i] += of->leaves[one->leaf + WORD * word + __builtin_ctz(words[word * LANES + i])];
            }
        }
        for (int32_t i = 0; i < lanes; i++)
            for (int32_t s = 0; s < of->score_count; s++) sums[i * of->score_count + s] = total[s][i];
    }
}
