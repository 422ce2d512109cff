/* nf4.h - the values of NF4 of QLoRA (arXiv 2305.14314): quantiles of a normal distribution over [-1,1], the numbers of its
 * appendix E and of bitsandbytes. An initialiser of 16 floats, for every backend. */
#ifndef GR_NF4_H
#define GR_NF4_H

#define GR_NF4_VALUES                                                                                                              \
    -1.0f, -0.696192801f, -0.525073051f, -0.394917488f, -0.284441382f, -0.184773430f, -0.0910500363f, 0.0f, 0.0795802996f,         \
        0.160930201f, 0.246112302f, 0.337915242f, 0.440709829f, 0.562617004f, 0.722956836f, 1.0f

#endif
